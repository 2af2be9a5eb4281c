"""Consistency-regularisation-based logit distillation (Zhang et al., ACM Multimedia 2024): the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision
from mdistiller.functional import standardize as standardized
from mdistiller.losses.kd import kd_loss


@in_full_precision
def crld_losses(
    student_weak: Tensor,
    student_strong: Tensor,
    teacher_weak: Tensor,
    teacher_strong: Tensor,
    temperature: float,
    tau_weak: float,
    tau_strong: float,
    standardize: bool = False,
) -> dict[str, Tensor]:
    """KL divergences within and across two views (Zhang et al., arXiv:2412.16493), each (B,), in nats times T**2.

    All logits are (B, C). `within_weak` and `within_strong` compare student and teacher on the same view. `cross_weak`
    compares the student's strong view with the teacher's weak view, and `cross_strong` the student's weak view with the
    teacher's strong view. A sample has losses within views only if the teacher's largest probability on the weak view
    is at least `tau_weak`, and losses across views only if that on the strong view is at least `tau_strong`; otherwise
    they are 0. `standardize` (logit standardization) applies to the divergences, not to these confidences.
    """
    within, across = (
        (logits.softmax(dim=1).amax(dim=1) >= tau).to(logits.dtype)
        for logits, tau in ((teacher_weak, tau_weak), (teacher_strong, tau_strong))
    )
    if standardize:
        student_weak, student_strong, teacher_weak, teacher_strong = map(
            standardized, (student_weak, student_strong, teacher_weak, teacher_strong)
        )
    return {
        "within_weak": within * kd_loss(student_weak, teacher_weak, temperature),
        "within_strong": within * kd_loss(student_strong, teacher_strong, temperature),
        "cross_weak": across * kd_loss(student_strong, teacher_weak, temperature),
        "cross_strong": across * kd_loss(student_weak, teacher_strong, temperature),
    }
