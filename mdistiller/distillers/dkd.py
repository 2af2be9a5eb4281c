"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from mdistiller.config import temperature_key, warm_up_key, weight_key
from mdistiller.distillers.base import LOG_1000, Distiller, register
from mdistiller.functional import warm_up
from mdistiller.losses.dkd import dkd_loss


@register("DKD")
class DKD(Distiller):
    """Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv:2203.08679).

    CE_WEIGHT * CE + min(epoch / WARMUP, 1) * dkd, see `dkd_loss`. With logit standardization, ALPHA and BETA are
    multiplied by LS_WEIGHT, as in the code of that method, or by KD.LOSS.KD_WEIGHT if the settings of the published
    code of the weighted variant are chosen (`as_released`).
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "ALPHA": weight_key(1.0, "the target-class term"),
        "BETA": weight_key(8.0, "the non-target-class term"),
        "T": temperature_key(4.0),
        "WARMUP": warm_up_key(20),
        "LS_WEIGHT": weight_key(1.0, "both terms when logits are standardized"),
    }
    search = {"ALPHA": 10, "BETA": 10, "T": 4}
    reads = ("KD",)
    release_weighting = {
        "upper_bound": 100.0, "upper_bound_imagenet": LOG_1000, "temperature": 3.0, "logits": "standardized",
    }

    def build(self, cfg):
        self.ce_weight, self.temperature, self.warmup = cfg.CE_WEIGHT, cfg.T, cfg.WARMUP
        factor = 1.0
        if self.logit_standardization:
            factor = self.cfg.KD.LOSS.KD_WEIGHT if self.as_released else cfg.LS_WEIGHT
        self.alpha, self.beta = factor * cfg.ALPHA, factor * cfg.BETA

    def sample_losses(self, student, teacher, target, epoch, **batch):
        loss = dkd_loss(student.logits, teacher.logits, target, self.alpha, self.beta, self.temperature)
        return {"dkd": warm_up(epoch, self.warmup) * loss}
