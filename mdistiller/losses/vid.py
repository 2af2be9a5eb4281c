"""Variational information distillation (Ahn et al., 2019): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def vid_loss(prediction: Tensor, target: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Negative log-likelihood of the teacher's map under a Gaussian (Ahn et al., arXiv:1904.05835, Eqs. 5 and 6).

    `prediction` (B, C, H, W) is the mean of the Gaussian and `target` (B, C, H, W) the teacher's map; the variance of
    each channel is softplus(log_scale) + eps, with `log_scale` (C,). The result (B,) is a mean over the map, in nats,
    without the constant ln(2 pi) / 2. It can be negative if a variance is below 1.
    """
    variance = (F.softplus(log_scale) + eps).view(1, -1, 1, 1)
    return ((prediction - target).square() / variance + variance.log()).flatten(1).mean(dim=1) / 2
