"""A comprehensive overhaul of feature distillation (Heo et al., 2019): the loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision

RARE = 0.001  # if negative values are less probable than this, the margin is -3 standard deviations


@in_full_precision
def margin_from_bn(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of the negative values of N(bias, weight^2) for each channel (Heo et al., arXiv:1904.01866, section 3.1).

    The affine parameters of a batch norm, (C,), (C,) -> (C,), at most 0 and without gradient. If negative values have a
    probability below 1/1000 the margin is -3 |weight|; for a weight of 0 it is min(bias, 0). Computed in double
    precision on the CPU, as Apple's GPUs have no float64.
    """
    sigma, mean = weight.detach().cpu().double().abs(), bias.detach().cpu().double()
    below = torch.special.ndtr(-mean / sigma)  # what divisions by 0 give is not chosen
    density = torch.exp(-((mean / sigma) ** 2) / 2) / math.sqrt(2 * math.pi)
    margin = torch.where(below > RARE, mean - sigma * density / below, -3 * sigma)
    return torch.where(sigma > 0, margin, mean.clamp(max=0)).to(weight.dtype).to(weight.device)


def _partial_l2(student, teacher, margin):
    """Sum over the map of (student - t)^2, with t = max(teacher, margin), at positions with t > 0 or student > t."""
    target = torch.maximum(teacher, margin.view(1, -1, 1, 1))
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).flatten(1).sum(dim=1)


@in_full_precision
def ofd_loss(
    connected_student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor, margins: list[Tensor] | Tensor
) -> Tensor:
    """Partial L2 distance of pre-activations with margin ReLU (Heo et al., arXiv:1904.01866, Eqs. 1 to 3) -> (B,).

    Each argument is a list with one tensor per level, the deepest last, or the tensor of a single level: the student's
    maps (B, C, h, w) after their connectors, the teacher's maps (B, C, H, W), which are adaptively average pooled to
    the student's size, and the margins (C,). The distances are sums over the map, not means. The deepest level has
    weight 1, the next 1/2, then 1/4, and so on. Where the teacher is negative, only a student above
    max(teacher, margin) has a loss.
    """
    if isinstance(connected_student, Tensor):
        connected_student, teacher, margins = [connected_student], [teacher], [margins]
    total = 0.0
    for student, target, margin in zip(connected_student, teacher, margins, strict=True):
        level = _partial_l2(student, F.adaptive_avg_pool2d(target, student.shape[2:]), margin)
        total = total / 2 + level
    return total
