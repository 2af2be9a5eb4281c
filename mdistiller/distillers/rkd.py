"""Relational knowledge distillation (Park et al., 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register


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


@register("RKD")
class RKD(Distiller):
    """Relational Knowledge Distillation (Park, Kim, Lu, Cho, CVPR 2019, arXiv:1904.05068).

    weight * (DISTANCE_WEIGHT * distances + ANGLE_WEIGHT * angles), each a smooth L1 loss on pooled features. With
    several processes, the batch is that of the process.
    """

    defaults = {
        "DISTANCE_WEIGHT": weight_key(25.0, "the distances"),
        "ANGLE_WEIGHT": weight_key(50.0, "the angles"),
        "PDIST": {
            "EPSILON": Key(1e-12, above=0, most=1, help="Lower bound of squared distances."),
            "SQUARED": Key(False, help="Compare squared distances."),
        },
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    inputs = "features"

    def build(self, cfg):
        self.weights = cfg.DISTANCE_WEIGHT, cfg.ANGLE_WEIGHT
        self.squared, self.eps = cfg.PDIST.SQUARED, cfg.PDIST.EPSILON
        self.ce_weight, self.relation_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        pooled = student.features["pooled_feat"], teacher.features["pooled_feat"]
        return {"relation": self.relation_weight * rkd_loss(*pooled, *self.weights, self.squared, self.eps)}
