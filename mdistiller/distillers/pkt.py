"""Probabilistic knowledge transfer (Passalis and Tefas, 2018)."""

import torch
from torch import Tensor

from mdistiller.config import weight_key
from mdistiller.distillers.base import Distiller, register


def _affinities(feats, eps):
    """(B, D) -> (B, B): each row is a distribution over the batch, from cosine similarities mapped to [0, 1]."""
    unit = feats / (torch.linalg.vector_norm(feats, dim=1, keepdim=True) + eps)
    unit = torch.where(unit.isnan(), 0.0, unit)  # as in the reference
    similarity = (unit @ unit.mT + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """KL divergence between affinities within the batch (Passalis, Tefas, arXiv:1803.10837), divided by B.

    (B, Ds), (B, Dt) -> (B,): for each anchor i, the mean over all samples j of the batch, i included. `eps` is added to
    the norms and inside the logarithm. The values decrease like 1/B.
    """
    p_student, p_teacher = _affinities(student, eps) + eps, _affinities(teacher, eps) + eps
    # p log(p / q) - (p - q): the second part sums to 0 and reduces rounding errors for nearly equal rows in float32
    ratio = (p_teacher - p_student) / p_student
    log_ratio = ratio.log1p()
    return (p_student * ((1 + ratio) * log_ratio - ratio) - eps * log_ratio).mean(dim=1)


@register("PKT")
class PKT(Distiller):
    """Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas, arXiv:1803.10837).

    weight * mean over anchors and samples of p(teacher) log(p(teacher) / p(student)), on pooled features. With several
    processes, the batch is that of the process.
    """

    defaults = {"LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(30000.0)}}
    inputs = "features"

    def build(self, cfg):
        self.ce_weight, self.affinity_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        loss = pkt_loss(student.features["pooled_feat"], teacher.features["pooled_feat"])
        return {"affinity": self.affinity_weight * loss}
