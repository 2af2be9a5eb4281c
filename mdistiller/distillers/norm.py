"""Batch norm for what small heads of a method work on, where a batch may hold one value a channel; not a method."""

import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, D) that uses its running statistics for a batch of one, which has no variance.

    The last batch of an epoch is kept, so it may hold one sample; maps have positions to average over, vectors do not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) > 1 else _by_running_statistics(self, x)


class MapBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` of (B, C, H, W) that uses its running statistics for a single map of one position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.numel() > x.shape[1] else _by_running_statistics(self, x)


def _by_running_statistics(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps)
