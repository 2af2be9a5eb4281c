"""Multi-level logit distillation (Jin, Wang, Lin, CVPR 2023)."""

import math

from mdistiller.config import Key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.mld import MASKINGS, mld_losses


@register("MLD", "MLKD", "MLLD", "KD_ours")
class MLD(Distiller):
    """Multi-Level Logit Distillation (Jin, Wang, Lin, CVPR 2023).

    openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html

    Compares student and teacher on two views of each image (weak and strong augmentation), at the level of instances,
    of classes and of the batch; see `mld_losses`. As in the public code, the temperature and the weights are keys of
    the node KD: KD.TEMPERATURE (the first of five temperatures), KD.LOSS.CE_WEIGHT for the cross-entropy of each view,
    and KD.LOSS.KD_WEIGHT (9 with logit standardization) for all other terms. The node MLD has MASKING: released (the
    default, for reproduction) or per_sample. Both keep other departures of the released code from the paper: the strong
    view has instance terms only, at three temperatures.
    """

    defaults = {"MASKING": Key("released", choices=MASKINGS, help=(
        "Confidence masks: one factor, their mean (released), or one factor for each sample and class (per_sample)."))}
    search = {"KD.LOSS.KD_WEIGHT": 10}
    reads = ("KD",)  # its temperature and weights
    views = ("image", "image_strong")
    term_views = {"strong": "image_strong"}
    batch_terms = ("cc", "bc")
    standardizes = False  # only the instance terms see standardized logits
    release_weighting = {"upper_bound": math.log(100), "temperature": 3.0}

    def build(self, cfg):
        self.masking = cfg.MASKING
        self.temperature = self.cfg.KD.TEMPERATURE
        self.ce_weight, self.kd_weight = self.cfg.KD.LOSS.CE_WEIGHT, self.cfg.KD.LOSS.KD_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        logits = [output.logits for output in (*student, *teacher)]
        losses = mld_losses(*logits, self.temperature, self.logit_standardization, self.masking)
        return {name: self.kd_weight * loss for name, loss in losses.items()}
