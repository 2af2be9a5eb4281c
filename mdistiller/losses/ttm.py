"""Transformed teacher matching, and its weighted form (Zheng, Yang, ICLR 2024): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision, kl_divergence


@in_full_precision
def ttm_loss(logits_student: Tensor, logits_teacher: Tensor, gamma: float) -> Tensor:
    """KL divergence from the power-transformed teacher to the student (arXiv:2402.11148): (B, C), (B, C) -> (B,).

    The teacher's probabilities are raised to the power `gamma` (1 / temperature) and renormalised. This is computed as
    softmax(gamma * logits_teacher), which does not underflow as a power of probabilities does. The student has no
    temperature. The result is in nats, without a factor of the temperature.
    """
    log_p_student = F.log_softmax(logits_student, dim=1)
    log_p_teacher = F.log_softmax(gamma * logits_teacher, dim=1)
    return kl_divergence(log_p_student, log_p_teacher)


@in_full_precision
def wttm_loss(logits_student: Tensor, logits_teacher: Tensor, gamma: float) -> Tensor:
    """`ttm_loss` times the power sum of the teacher, sum_k p_k**gamma: (B, C), (B, C) -> (B,).

    The power sum is 1 for a one-hot teacher and C**(1 - gamma) for a uniform one.
    """
    power_sum = (gamma * F.log_softmax(logits_teacher, dim=1)).logsumexp(dim=1).exp()
    return power_sum * ttm_loss(logits_student, logits_teacher, gamma)
