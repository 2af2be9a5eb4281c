"""Batch norm for the vectors that small heads of a method work on; not a method."""

import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, D) that uses its running statistics for a batch of one, which has no variance.

    The last batch of an epoch is kept, so it may hold one sample; maps have positions to average over, vectors do not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
