"""Probabilistic knowledge transfer (Passalis and Tefas, 2018): the loss."""

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision


def _affinities(feats, eps):
    """(B, D) -> (B, B): each row is a distribution over the batch, from cosine similarities mapped to [0, 1]."""
    unit = feats / (torch.linalg.vector_norm(feats, dim=1, keepdim=True) + eps)
    unit = torch.where(unit.isnan(), 0.0, unit)  # as in the reference
    similarity = (unit @ unit.mT + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


@in_full_precision
def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """KL divergence between affinities within the batch (Passalis, Tefas, arXiv:1803.10837), divided by B.

    (B, Ds), (B, Dt) -> (B,): for each anchor i, the mean over all samples j of the batch, i included. `eps` is added to
    the norms and inside the logarithm. The values decrease like 1/B.
    """
    p_student, p_teacher = _affinities(student, eps) + eps, _affinities(teacher, eps) + eps
    # p log(p / q) - (p - q): the second part sums to 0 and reduces rounding errors for nearly equal rows in float32
    ratio = (p_teacher - p_student) / p_student
    log_ratio = ratio.log1p()
    return (p_student * ((1 + ratio) * log_ratio - ratio) - eps * log_ratio).mean(dim=1)
