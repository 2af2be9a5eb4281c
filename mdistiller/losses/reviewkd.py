"""Knowledge review (Chen et al., CVPR 2021): the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision

POOLED_SIZES = (4, 2, 1)  # the context loss also compares the maps averaged to these sizes


@in_full_precision
def hcl_loss(student_feats: list[Tensor], teacher_feats: list[Tensor]) -> Tensor:
    """Hierarchical context loss (Chen et al., arXiv:2104.09044), summed over levels.

    Two lists of maps (B, C, H, W), equal in shape at each level -> (B,). The loss of a level is a weighted mean of mean
    squared differences: that of the maps has weight 1, and those of the maps pooled to 4x4, 2x2 and 1x1 have weights
    1/2, 1/4 and 1/8 in this order. Sizes that are not below H are skipped, and the next size then takes their weight.
    All inputs that require a gradient get one.
    """
    levels = []
    for feat_student, feat_teacher in zip(student_feats, teacher_feats, strict=True):
        difference = feat_student - feat_teacher  # pooling is linear, so the difference can be pooled
        level, coefficient, total = _mean_square(difference), 1.0, 1.0
        for size in POOLED_SIZES:
            if size < difference.shape[2]:
                coefficient /= 2
                total += coefficient
                level = level + coefficient * _mean_square(F.adaptive_avg_pool2d(difference, size))
        levels.append(level / total)
    return torch.stack(levels).sum(dim=0)


def _mean_square(x):
    return x.square().mean((1, 2, 3))
