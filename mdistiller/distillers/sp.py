"""Similarity-preserving distillation (Tung and Mori, 2019)."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import feat_shapes


def _similarities(feats):
    """(B, ...) -> (B, B): inner products within the batch, each row scaled to unit length (a zero row stays zero)."""
    flat = feats.flatten(1)
    return F.normalize(flat @ flat.mT, dim=1)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of row-normalised similarity matrices (Tung, Mori, arXiv:1907.09682).

    (B, ...), (B, ...) -> (B,), the mean over each row; the other dimensions may have any shape.
    """
    return (_similarities(teacher) - _similarities(student)).square().mean(dim=1)


@register("SP")
class SimilarityPreserving(Distiller):
    """Similarity-Preserving Knowledge Distillation (Tung, Mori, ICCV 2019, arXiv:1907.09682).

    weight * mean((G(teacher) - G(student))^2), where G are the row-normalised similarities of the last `feats` within
    the batch. With several processes, the batch is that of the process.
    """

    defaults = {"LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(3000.0)}}
    inputs = "features"

    def build(self, cfg):
        self.ce_weight, self.similarity_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        feat_shapes(self)

    def sample_losses(self, student, teacher, **batch):
        loss = sp_loss(student.features["feats"][-1], teacher.features["feats"][-1])
        return {"similarity": self.similarity_weight * loss}
