"""Recognise common mistakes in a user's distillation loss."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.library.doctor.finding import Case, Finding

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0)  # in common use
TOLERANCE = 1e-3


def check_formula(case: Case) -> Iterator[Finding]:
    """The user's own `loss(logits_student, logits_teacher)` against T**2 * KL(teacher, student), mean over samples.

    The temperature is the method's, or else one in common use. A correct loss, or one that no known mistake
    explains, gives no finding.
    """
    loss, student, teacher = case.settings.get("loss"), case.logits_student, case.logits_teacher
    if loss is None or student is None or teacher is None or student.shape != teacher.shape:
        return
    student = student.detach().float().requires_grad_()
    with torch.enable_grad():
        value = loss(student, teacher.float())
        if not isinstance(value, Tensor) or not value.requires_grad:
            yield Finding("own loss detached", "the loss that was passed carries no gradient to the student's logits")
            return
    found = float(value.detach().float().mean())
    own = getattr(case.kd.distiller, "temperature", None)
    own = [float(own)] if isinstance(own, int | float) else []
    for temperature in [*own, *(t for t in TEMPERATURES if t not in own)]:
        variants = mistakes(student.detach(), teacher.float(), temperature)
        if _close(found, variants.pop("right")):
            return
        for words, wrong in variants.items():
            if _close(found, wrong):
                yield Finding("formula", f"the loss that was passed is {words} (temperature {temperature:g})")
                return


def _close(found, expected):
    return abs(found - float(expected)) <= TOLERANCE * max(abs(found), abs(float(expected)), 1e-12)


def mistakes(student: Tensor, teacher: Tensor, temperature: float) -> dict[str, Tensor]:
    """{description of a mistake: the loss with it}; the correct loss under "right"."""
    log_q, log_p = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    square, (samples, classes) = temperature**2, student.shape
    right = _kl(log_p, log_q)
    found: dict[str, Callable[[], Tensor] | Tensor] = {
        "right": square * right,
        "divided by the number of classes: reduction='mean' of kl_div in place of 'batchmean'": square
        * right
        / classes,
        "a sum over the batch: reduction='sum' in place of 'batchmean'": square * right * samples,
        "the divergence the wrong way round, from student to teacher": square * _kl(log_q, log_p),
        "that of probabilities given to kl_div, which takes log-probabilities": square
        * F.kl_div(log_q.exp(), log_p.exp(), reduction="batchmean"),
        "that of logits which were softmaxed before": square
        * _kl(*((logits.softmax(dim=1) / temperature).log_softmax(dim=1) for logits in (teacher, student))),
        "the cross-entropy of the softened outputs, not their divergence": -square
        * (log_p.exp() * log_q).sum(1).mean(),
        "the mean squared difference of the logits": (student - teacher).square().mean(),
    }
    if temperature != 1:
        found |= {
            "without the square of the temperature": right,
            "times the square of the temperature twice": square**2 * right,
            "times the temperature, not its square": temperature * right,
            "softened on the teacher's side alone": square * _kl(log_p, student.log_softmax(dim=1)),
            "softened on the student's side alone": square * _kl(teacher.log_softmax(dim=1), log_q),
            "without the square of the temperature, and divided by the number of classes": right / classes,
        }
    return found


def _kl(log_from: Tensor, log_to: Tensor) -> Tensor:
    return (log_from.exp() * (log_from - log_to)).sum(dim=1).mean()
