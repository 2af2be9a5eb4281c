"""Knowledge distillation (Hinton et al., 2015)."""

from torch import Tensor

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import LOG_1000, Distiller, register
from mdistiller.errors import UserError
from mdistiller.losses.kd import kd_loss


def regression_loss(student, teacher) -> Tensor:
    """Mean squared difference of the outputs' `regression`, (n, R) each -> (n,), as in FCFD's code for pyramids.

    Raises UserError where the outputs have none.
    """
    if student.regression is None or teacher.regression is None:
        raise UserError("KD.LOSS.REGRESSION_WEIGHT: these networks regress nothing; expected 0")
    return (student.regression - teacher.regression).square().mean(1)


@register("KD")
class KD(Distiller):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, arXiv:1503.02531)."""

    defaults = {
        "TEMPERATURE": temperature_key(4.0),
        "LOSS": {
            "CE_WEIGHT": weight_key(0.1, "the cross-entropy"), "KD_WEIGHT": weight_key(0.9),
            "REGRESSION_WEIGHT": weight_key(0.0, "the squared distance of what networks regress, if anything"),
        },
    }
    search = {"LOSS.KD_WEIGHT": 10, "TEMPERATURE": 4}
    release_weighting = {"upper_bound": 100.0, "upper_bound_imagenet": LOG_1000}

    def build(self, cfg):
        self.temperature = cfg.TEMPERATURE
        self.ce_weight, self.kd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.KD_WEIGHT
        self.regression_weight = cfg.LOSS.REGRESSION_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        losses = {"kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)}
        if self.regression_weight:
            losses["regression"] = self.regression_weight * regression_loss(student, teacher)
        return losses
