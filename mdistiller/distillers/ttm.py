"""Transformed teacher matching, and its weighted form (Zheng, Yang, ICLR 2024)."""

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.ttm import ttm_loss, wttm_loss


def _keys(gamma, beta):
    return {
        "GAMMA": Key(gamma, above=0, most=1e3, help="Power of the teacher's probabilities, 1 / temperature."),
        "BETA": weight_key(beta),
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
    }


@register("TTM")
class TTM(Distiller):
    """Knowledge Distillation Based on Transformed Teacher Matching (Zheng, Yang, ICLR 2024, arXiv:2402.11148).

    CE_WEIGHT * CE + BETA * KL(q || p_student), where q is p_teacher**GAMMA, renormalised. The paper tunes GAMMA and
    BETA for every pair of networks.
    """

    defaults = _keys(gamma=0.1, beta=45.0)  # the released example for vgg13 -> vgg8; uncertain for other pairs
    search = {"BETA": 10, "GAMMA": 4}
    loss = staticmethod(ttm_loss)

    def build(self, cfg):
        self.gamma, self.beta, self.ce_weight = cfg.GAMMA, cfg.BETA, cfg.CE_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        return {"kd": self.beta * self.loss(student.logits, teacher.logits, self.gamma)}


@register("WTTM")
class WTTM(TTM):
    """Weighted transformed teacher matching (Zheng, Yang, ICLR 2024, arXiv:2402.11148).

    TTM with the loss of each sample multiplied by the power sum of the teacher's probabilities. For GAMMA up to 1 the
    power sum is at least 1, so BETA is smaller than that of TTM.
    """

    defaults = _keys(gamma=0.2, beta=4.0)  # the released example with CRD for vgg13 -> vgg8; uncertain otherwise
    loss = staticmethod(wttm_loss)
