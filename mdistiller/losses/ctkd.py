"""Curriculum temperature (Li et al., AAAI 2023): the loss."""

import math

import torch
from torch import Tensor

from mdistiller.functional import cross_entropy, in_full_precision, log_softened
from mdistiller.losses.kd import kd_loss

INSTANCE_SMOOTHING = 1e-7  # added to the teacher's probabilities by the released instance-wise loss


@in_full_precision
def ctkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float | Tensor, smoothing: float | None = None
) -> Tensor:
    """KL divergence from teacher to student at a learned temperature (Li et al., arXiv:2211.16231): (B, C) -> (B,).

    In nats, times temperature**2; the gradient of the temperature flows through this factor too. `temperature` is a
    number or a tensor of one element for all samples, or a tensor (B,) with one for each sample. `smoothing` is added
    to the teacher's probabilities without renormalising them, as in the released code; by default it is 0 for one
    temperature and 1e-7 for one per sample. A tensor (1,) counts as one temperature for all, so a batch of one sample
    with a temperature of its own needs smoothing=1e-7. A class with a teacher's logit of -inf keeps the probability 0.
    """
    if isinstance(temperature, Tensor):
        if smoothing is None and temperature.numel() > 1:
            smoothing = INSTANCE_SMOOTHING
        temperature = temperature.reshape(-1, 1)
    if not smoothing:
        return kd_loss(logits_student, logits_teacher, temperature)
    log_p_student, log_p_teacher = (log_softened(logits, temperature) for logits in (logits_student, logits_teacher))
    smoothed = torch.logaddexp(log_p_teacher, log_p_teacher.new_full((), math.log(smoothing)))
    log_p_teacher = smoothed.masked_fill(log_p_teacher.isneginf(), -math.inf)
    # not kl_divergence, which needs probabilities that sum to 1
    terms = cross_entropy(log_p_student, log_p_teacher) - cross_entropy(log_p_teacher, log_p_teacher)
    return (temperature**2 * terms.sum(dim=1, keepdim=True)).squeeze(1)


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


def gradient_reversal(x: Tensor, factor: float) -> Tensor:
    """The identity, whose backward pass multiplies the gradient by `factor` (a negative one reverses it)."""
    return _GradientReversal.apply(x, factor)


def cosine_schedule(epoch: int, max_value: float, min_value: float, num_loops: int) -> float:
    """Factor in an epoch (from 1): a half cosine from `max_value` to `min_value` in `num_loops` epochs, then constant.
    """
    progress = min(epoch, num_loops) / num_loops
    return min_value + (max_value - min_value) * (1 + math.cos(math.pi * progress)) / 2
