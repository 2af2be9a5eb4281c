"""Knowledge distillation (Hinton et al., 2015)."""

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import LOG_1000, Distiller, register
from mdistiller.losses.kd import kd_loss


@register("KD")
class KD(Distiller):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, arXiv:1503.02531)."""

    defaults = {
        "TEMPERATURE": temperature_key(4.0),
        "LOSS": {"CE_WEIGHT": weight_key(0.1, "the cross-entropy"), "KD_WEIGHT": weight_key(0.9)},
    }
    release_weighting = {"upper_bound": 100.0, "upper_bound_imagenet": LOG_1000}

    def build(self, cfg):
        self.temperature = cfg.TEMPERATURE
        self.ce_weight, self.kd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.KD_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        return {"kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)}
