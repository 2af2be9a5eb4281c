"""Entropy-adaptive sample weights (EA-KD, Su et al., ICCV 2025, arXiv:2311.13621, Eqs. 8-12): a sample whose teacher
output has high entropy teaches more.

The one place that knows the formulas; the base class multiplies by them in one place. A sample is whatever has its own
pair of logits (an image, a box proposal, a token): everything here takes (n, C) logits and returns (n,) tensors.
"""

import math

import torch
from torch import Tensor

from mdistiller.functional import entropy


def _ea(student, teacher, bound):
    return teacher * (1 + student / bound) / 2


KINDS = {  # of the entropies of student and teacher, (n,), and their upper bound
    "none": lambda student, teacher, bound: torch.ones_like(teacher),
    "base": lambda student, teacher, bound: teacher,
    "interact": lambda student, teacher, bound: teacher * student / bound,
    "ea": _ea,  # Eq. 11: the mean of the two above
    "student": lambda student, teacher, bound: student,
    "inverted_teacher": lambda student, teacher, bound: bound - teacher,
    "inverted_student": lambda student, teacher, bound: bound - student,
    # Controls that separate the two things EA does: rescaling the loss, and reweighting within the batch.
    "constant": lambda student, teacher, bound: _ea(student, teacher, bound).mean().expand_as(teacher),
    "normalized": lambda student, teacher, bound: _normalized(_ea(student, teacher, bound)),
}


def _normalized(weight):
    return weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)


def weigh(entropy_student: Tensor, entropy_teacher: Tensor, bound: float, kind: str = "ea") -> Tensor:
    """Sample weights (n,) of the entropies (n,) of student and teacher. Raises ValueError for an unknown `kind`."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind](entropy_student, entropy_teacher, bound)


@torch.no_grad()
def ea_weight(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    kind: str = "ea",
    upper_bound: float | None = None,
) -> Tensor:
    """Sample weights w = H^T/2 (1 + H^S / H_ub) (EA-KD, Eq. 11), detached: (n, C), (n, C) -> (n,).

    `temperature` is the paper's T', independent of the distillation temperature; `upper_bound` is H_ub, log C when
    None (the release divides by the number 100 in places). The other kinds are the paper's ablations (Tables 1 and 9)
    and two controls: `constant` gives every sample the batch mean of w, `normalized` divides w by that mean; with
    several processes the batch is the process's own, as for every method that relates the samples of a batch.
    """
    bound = upper_bound_of(logits_teacher, upper_bound)
    return weigh(entropy(logits_student, temperature), entropy(logits_teacher, temperature), bound, kind)


def upper_bound_of(logits: Tensor, upper_bound: float | None = None) -> float:
    """`upper_bound`, or the greatest entropy that C classes allow: log C."""
    return math.log(logits.shape[-1]) if upper_bound is None else float(upper_bound)
