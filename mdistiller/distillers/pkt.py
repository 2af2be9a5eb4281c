"""Probabilistic knowledge transfer (Passalis and Tefas, 2018)."""

from mdistiller.config import weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.pkt import pkt_loss


@register("PKT")
class PKT(Distiller):
    """Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas, arXiv:1803.10837).

    weight * mean over anchors and samples of p(teacher) log(p(teacher) / p(student)), on pooled features. With several
    processes, the batch is that of the process.
    """

    defaults = {"LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(30000.0)}}
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("pooled_feat",)

    def build(self, cfg):
        self.ce_weight, self.affinity_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        loss = pkt_loss(student.features["pooled_feat"], teacher.features["pooled_feat"])
        return {"affinity": self.affinity_weight * loss}
