"""Normalized knowledge distillation (Yang et al., ICCV 2023)."""

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.nkd import nkd_loss


@register("NKD")
class NKD(Distiller):
    """From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., ICCV 2023, arXiv:2303.13005).

    NKD, the paper's method with a teacher; its self-distillation USKD is not included.
    CE + KD_WEIGHT * nkd; see `nkd_loss`. The defaults are those of the released loss and of ImageNet: T 1, GAMMA 1.5.
    The authors' CIFAR-100 file (ResNet34 -> ResNet18) has T 3 and GAMMA 3.5.

    Uncertain: T and GAMMA for the other pairs of CIFAR-100.
    """

    defaults = {
        "T": temperature_key(1.0, "the non-target classes"),
        "GAMMA": weight_key(1.5, "the non-target classes"),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "KD_WEIGHT": weight_key(1.0)},
    }
    search = {"LOSS.KD_WEIGHT": 10, "T": 4}

    def build(self, cfg):
        self.temperature, self.gamma = cfg.T, cfg.GAMMA
        self.ce_weight, self.kd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.KD_WEIGHT

    def sample_losses(self, student, teacher, target, **batch):
        loss = nkd_loss(student.logits, teacher.logits, target, self.temperature, self.gamma)
        return {"nkd": self.kd_weight * loss}
