"""Attention transfer (Zagoruyko and Komodakis, 2017)."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import feat_shapes, pairs_of_one_size, stages


def _attention(feat, p):
    """(B, C, H, W) -> (B, H * W) of unit length; a map of zeros stays zero."""
    return F.normalize(feat.pow(p).mean(dim=1).flatten(1), dim=1)


def at_loss(student_feats: list[Tensor], teacher_feats: list[Tensor], p: int = 2) -> Tensor:
    """Mean squared difference of attention maps (Zagoruyko, Komodakis, arXiv:1612.03928, Eq. 2), summed over stages.

    Lists of (B, C, H, W), paired in order -> (B,). The attention map is the mean of feat^p over channels, divided by
    its norm over positions. p should be even, because an odd power keeps the sign. The larger map of a pair is pooled
    to the size of the smaller one before the power is taken.
    """
    losses = [
        (_attention(student, p) - _attention(teacher, p)).square().mean(dim=1)
        for student, teacher in pairs_of_one_size(student_feats, teacher_feats)
    ]
    return sum(losses)


@register("AT")
class AttentionTransfer(Distiller):
    """Paying More Attention to Attention (Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928).

    weight * sum over stages of mean((q(student) - q(teacher))^2), where q is the normalised channel mean of feat^P.

    Departs from the paper as RepDistiller does: the squared difference is averaged over positions instead of taking
    its norm, which is why the weight is 1000.
    """

    defaults = {
        "P": Key(2, least=1, most=64, help="Power of the features in the attention maps."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1000.0)},
    }
    inputs = "features"

    def build(self, cfg):
        self.p, self.ce_weight, self.attention_weight = cfg.P, cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        feat_shapes(self)

    def sample_losses(self, student, teacher, **batch):
        return {"attention": self.attention_weight * at_loss(stages(student), stages(teacher), self.p)}
