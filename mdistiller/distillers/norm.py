"""Batch norms for the small modules of methods, which also accept one value per channel. Not a method."""

import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` for (B, D) that uses its running statistics for a batch of one sample, which has no variance.

    The incomplete last batch of an epoch is used too, so a batch may have one sample. Maps can be averaged over their
    positions, but vectors cannot.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) > 1 else _by_running_statistics(self, x)


class MapBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` for (B, C, H, W) that uses its running statistics for a batch of one map with one position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.numel() > x.shape[1] else _by_running_statistics(self, x)


def _by_running_statistics(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps)
