"""Neuron selectivity transfer (Huang and Wang, 2017)."""

from mdistiller.config import weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import shapes_of_stages, stages
from mdistiller.losses.nst import nst_loss


@register("NST")
class NeuronSelectivityTransfer(Distiller):
    """Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang, arXiv:1707.01219).

    weight * sum over stages of K(t, t) + K(s, s) - 2 K(s, t), where K is the mean over pairs of channels of (u . v)^2.
    """

    defaults = {"LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(50.0)}}
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    def build(self, cfg):
        self.ce_weight, self.selectivity_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        shapes_of_stages(self)

    def sample_losses(self, student, teacher, **batch):
        return {"selectivity": self.selectivity_weight * nst_loss(stages(student), stages(teacher))}
