"""Distillation with the reused teacher classifier (Chen et al., CVPR 2022): the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision
from mdistiller.losses.maps import pool_to_smaller


@in_full_precision
def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps (Chen et al., arXiv:2203.14001), the larger of which is pooled.

    (B, D, H, W), (B, D, h, w) -> (B,).
    """
    projected, teacher = pool_to_smaller(projected, teacher)
    return (projected - teacher).square().mean((1, 2, 3))
