"""Attention transfer (Zagoruyko and Komodakis, 2017): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision
from mdistiller.losses.maps import pairs_of_one_size


def _attention(feat, p):
    """(B, C, H, W) -> (B, H * W) of unit length; a map of zeros stays zero."""
    return F.normalize(feat.pow(p).mean(dim=1).flatten(1), dim=1)


@in_full_precision
def at_loss(student_feats: list[Tensor], teacher_feats: list[Tensor], p: int = 2) -> Tensor:
    """Mean squared difference of attention maps (Zagoruyko, Komodakis, arXiv:1612.03928, Eq. 2), summed over stages.

    Lists of (B, C, H, W), paired in order -> (B,). The attention map is the mean of feat^p over channels, divided by
    its norm over positions. p should be even, because an odd power keeps the sign. The larger map of a pair is pooled
    to the size of the smaller one before the power is taken. The paper takes the norm of the difference of the maps;
    the mean square is that of RepDistiller.
    """
    losses = [
        (_attention(student, p) - _attention(teacher, p)).square().mean(dim=1)
        for student, teacher in pairs_of_one_size(student_feats, teacher_feats)
    ]
    return sum(losses)
