"""Similarity-preserving distillation (Tung and Mori, 2019): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision


def _similarities(feats):
    """(B, ...) -> (B, B): inner products within the batch, each row scaled to unit length (a zero row stays zero)."""
    flat = feats.flatten(1)
    return F.normalize(flat @ flat.mT, dim=1)


@in_full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of row-normalised similarity matrices (Tung, Mori, arXiv:1907.09682).

    (B, ...), (B, ...) -> (B,), the mean over each row; the other dimensions may have any shape.
    """
    return (_similarities(teacher) - _similarities(student)).square().mean(dim=1)
