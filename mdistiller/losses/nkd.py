"""Normalized knowledge distillation (Yang et al., ICCV 2023): the loss."""

from torch import Tensor

from mdistiller.functional import cross_entropy, in_full_precision
from mdistiller.losses.dkd import split_target


@in_full_precision
def target_loss(logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
    """-p_teacher log p_student of the target class, at temperature 1: (B, C), (B, C), (B,) -> (B,), in nats."""
    log_p_student, log_p_teacher = (
        logits.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1) for logits in (logits_student, logits_teacher)
    )
    return cross_entropy(log_p_student, log_p_teacher)


@in_full_precision
def nkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float, gamma: float
) -> Tensor:
    """Target term + gamma * T**2 * cross-entropy of the non-target distributions (Yang et al., arXiv:2303.13005).

    (B, C), (B, C), (B,) -> (B,), in nats. The non-target distributions are softmaxes over the other classes, so those
    of student and teacher both sum to one. Only this term has a temperature. Both terms are cross-entropies, not
    divergences, so they are not 0 for equal logits.
    """
    _, others_student = split_target(logits_student, target, temperature)
    _, others_teacher = split_target(logits_teacher, target, temperature)
    non_target = cross_entropy(others_student, others_teacher).sum(dim=1)
    return target_loss(logits_student, logits_teacher, target) + gamma * temperature**2 * non_target
