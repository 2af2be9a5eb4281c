"""Relational knowledge distillation (Park et al., 2019): the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision


def _distances(feats, squared, eps):
    """(B, D) -> (B, B): Euclidean distances divided by the mean of the positive ones, with 0 on the diagonal.

    They are computed from inner products, as in the reference.
    """
    square = feats.square().sum(dim=1)
    distance = (square[:, None] + square - 2 * feats @ feats.mT).clamp(min=eps)
    if not squared:
        distance = distance.sqrt()
    distance = distance.masked_fill(torch.eye(len(feats), dtype=torch.bool, device=feats.device), 0.0)
    count = (distance > 0).sum()
    return distance / torch.where(count > 0, distance.sum() / count.clamp(min=1), 1.0)  # a batch of one has no pairs


def _angles(feats):
    """(B, D) -> (B, B, B): cosine of the angle at the sample of the first index between the other two samples."""
    directions = F.normalize(feats[None, :] - feats[:, None], dim=2)
    return directions @ directions.mT


@in_full_precision
def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    squared: bool = False,
    eps: float = 1e-12,
) -> Tensor:
    """Smooth L1 between distances and angles within the batch (Park et al., arXiv:1904.05068).

    (B, ...), (B, ...) -> (B,); the other dimensions may have any shape. The loss of sample i is a mean over all
    distances from i and all angles at i; for a batch of one it is 0. With `squared`, squared distances are compared.
    `eps` is the lower bound of squared distances.
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    distances = _distances(student, squared, eps), _distances(teacher, squared, eps)
    angles = _angles(student), _angles(teacher)
    distance = F.smooth_l1_loss(*distances, reduction="none").mean(dim=1)
    angle = F.smooth_l1_loss(*angles, reduction="none").mean(dim=(1, 2))
    return distance_weight * distance + angle_weight * angle
