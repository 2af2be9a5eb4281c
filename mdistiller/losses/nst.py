"""Neuron selectivity transfer (Huang and Wang, 2017): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision
from mdistiller.losses.maps import pairs_of_one_size


def _kernel_mean(a, b):
    """Mean over pairs of channels of the squared inner product: (B, C1, N), (B, C2, N) -> (B,)."""
    return (a @ b.mT).square().mean(dim=(1, 2))


def _discrepancy(student, teacher):
    """Squared maximum mean discrepancy of the channels of two maps, with the kernel (u . v)^2: -> (B,)."""
    student, teacher = (F.normalize(feat.flatten(2), dim=2) for feat in (student, teacher))
    if student.shape[2] > max(student.shape[1], teacher.shape[1]):
        own = _kernel_mean(teacher, teacher) + _kernel_mean(student, student)
        return own - 2 * _kernel_mean(student, teacher)
    # With fewer positions than channels, (N, N) matrices give the same: sum_cd (u_c . v_d)^2 = <U^T U, V^T V>
    gram_student, gram_teacher = (feat.mT @ feat / feat.shape[1] for feat in (student, teacher))
    return (gram_teacher - gram_student).square().sum(dim=(1, 2))


@in_full_precision
def nst_loss(student_feats: list[Tensor], teacher_feats: list[Tensor]) -> Tensor:
    """Squared MMD between the channels' activation patterns (Huang, Wang, arXiv:1707.01219), summed over stages.

    Lists of (B, C, H, W), paired in order, with any numbers of channels -> (B,). MMD is the maximum mean discrepancy.
    The pattern of a channel is its map scaled to unit norm (a map of zeros stays zero), and the kernel is polynomial of
    degree 2 without offset. The larger map of a pair is pooled first.
    """
    return sum(_discrepancy(*pair) for pair in pairs_of_one_size(student_feats, teacher_feats))
