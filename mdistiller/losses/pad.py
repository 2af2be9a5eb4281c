"""Prime-aware adaptive distillation (Zhang et al., ECCV 2020): the loss."""

import math

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def pad_loss(student_embedding: Tensor, teacher_embedding: Tensor, log_variance: Tensor, eps: float) -> Tensor:
    """Mean over D of (f_S - f_T)^2 / (exp(s) + eps) + s (arXiv:2008.01458): (B, D), (B, D) -> (B,).

    This is twice the negative log-likelihood, up to a constant, of the teacher's embedding f_T under a Gaussian around
    the student's embedding f_S. s is the predicted `log_variance`: (B, D), or (B, 1) or (B,) for one per sample. The
    loss may be negative. The reciprocal is computed from logarithms, so that neither it nor its gradient overflows.
    """
    log_variance = log_variance.reshape(len(log_variance), -1)
    log_floor = log_variance.new_full((), math.log(eps) if eps > 0 else -math.inf)
    precision = (-torch.logaddexp(log_variance, log_floor)).exp()
    return ((student_embedding - teacher_embedding).square() * precision + log_variance).mean(dim=1)
