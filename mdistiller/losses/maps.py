"""Bringing two maps to one size."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, C, H, W) at one size: the larger in height, or else in width, is pooled to the size of the other.

    The pooling is adaptive and averages; channels may differ. The reference pools to (H, H), H the smaller height,
    which is the same for square maps.
    """
    size_student, size_teacher = student.shape[2:], teacher.shape[2:]
    if size_student > size_teacher:  # compares heights, then widths
        student = F.adaptive_avg_pool2d(student, size_teacher)
    elif size_teacher > size_student:
        teacher = F.adaptive_avg_pool2d(teacher, size_student)
    return student, teacher


@in_full_precision
def pairs_of_one_size(student_feats: list[Tensor], teacher_feats: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of both networks, paired in order, each pair at one size; extra maps of the longer list are left out."""
    return [pool_to_smaller(*pair) for pair in zip(student_feats, teacher_feats, strict=False)]
