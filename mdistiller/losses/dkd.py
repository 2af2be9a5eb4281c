"""Decoupled knowledge distillation (Zhao et al., CVPR 2022): the loss."""

import math

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision, kl_divergence


@in_full_precision
def split_target(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log of (p_target, 1 - p_target), (B, 2), and the log-softmax over the other classes, (B, C - 1).

    Both are those at `temperature`, of logits (B, C) and targets (B,). If the probability of all other classes is 0
    (logits of -inf), their logarithms are -inf.
    """
    logits = logits / temperature
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= target[:, None]))  # a boolean mask would wait for the GPU
    on_target = logits.gather(1, target[:, None])
    absent = others.isneginf().all(dim=1, keepdim=True)
    others = others.masked_fill(absent, 0.0)
    binary = torch.cat([on_target, others.logsumexp(dim=1, keepdim=True).masked_fill(absent, -math.inf)], dim=1)
    return binary.log_softmax(dim=1), others.log_softmax(dim=1).masked_fill(absent, -math.inf)


@in_full_precision
def dkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """alpha * TCKD + beta * NCKD (Zhao et al., arXiv:2203.08679, Eq. 7): (B, C), (B, C), (B,) -> (B,), in nats.

    TCKD compares (p_target, 1 - p_target), NCKD the softmax over the other classes; both are multiplied by
    temperature**2. Here the probability of the other classes is a log-sum-exp, and the target's column is removed. The
    released code takes the logarithm of summed probabilities and subtracts 1000 from the target's logit instead: equal
    for ordinary logits, but not finite for extreme ones.
    """
    binary_student, others_student = split_target(logits_student, target, temperature)
    binary_teacher, others_teacher = split_target(logits_teacher, target, temperature)
    tckd, nckd = kl_divergence(binary_student, binary_teacher), kl_divergence(others_student, others_teacher)
    return temperature**2 * (alpha * tckd + beta * nckd)
