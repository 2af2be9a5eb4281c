"""Refined logit distillation (Sun et al., ICCV 2025): the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision, kl_divergence
from mdistiller.losses.dkd import split_target

MASKED = -1e9  # as released; finite, so that a row with all classes masked is uniform for both networks


@in_full_precision
def rld_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    confidence_temperature: float,
) -> Tensor:
    """alpha * confidence + beta * correlation (Sun et al., arXiv:2408.07703): (B, C), (B, C), (B,) -> (B,), in nats.

    The confidence term is the KL divergence from the teacher's (p_max, 1 - p_max), with p_max its largest probability,
    to the student's (p_target, 1 - p_target). The correlation term is the KL divergence over the classes to which the
    teacher gives a smaller probability than to the target, renormalised, so that the teacher's mistakes are left out;
    it is 0 if there are no such classes, or if the teacher gives the probability 0 to all of them. Each term is
    multiplied by the square of its temperature.
    """
    confidence_student, _ = split_target(logits_student, target, confidence_temperature)
    confidence_teacher, _ = split_target(logits_teacher, logits_teacher.argmax(dim=1), confidence_temperature)
    confidence = confidence_temperature**2 * kl_divergence(confidence_student, confidence_teacher)
    mask = logits_teacher >= logits_teacher.gather(1, target[:, None])
    mask = mask | (mask | logits_teacher.isneginf()).all(dim=1, keepdim=True)
    log_p_student, log_p_teacher = (
        (logits / temperature).masked_fill(mask, MASKED).log_softmax(dim=1)
        for logits in (logits_student, logits_teacher)
    )
    return alpha * confidence + beta * temperature**2 * kl_divergence(log_p_student, log_p_teacher)
