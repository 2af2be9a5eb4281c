"""Entropy-adaptive sample weights (EA-KD, Su et al., ICCV 2025, arXiv:2311.13621, Eqs. 8-12): a sample whose teacher
output has high entropy teaches more.

The one place that knows the formulas; the base class multiplies by them in one place. A sample is whatever has its own
pair of logits (an image, a token): everything here takes (n, C) logits and returns (n,) tensors.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mdistiller.functional import entropy, group_mean


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


# EA.LEVEL. Other names than the first two say the same of language models, where a group is a sequence; with
# "prompt_and_response" the mean entropies are those of all its tokens, not of the supervised ones alone.
LEVELS = ("sample", "group", "token", "sequence", "mean_weight", "prompt_and_response")
ALONE = ("sample", "token")  # levels at which a sample's weight is its own


def _normalized(weight):
    return weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)


class SampleWeights(NamedTuple):
    """Weights and the entropies they come from (nats, at the weight temperature, before groups are averaged), (n,)."""

    weight: Tensor
    entropy_student: Tensor
    entropy_teacher: Tensor


@torch.no_grad()
def weigh_entropies(
    student: Tensor, teacher: Tensor, kind: str, bound: float, group: Tensor | None = None, level: str = "group"
) -> Tensor:
    """Weights (n,) of samples by the entropies (n,) of student and teacher and their upper bound; see `ea_weight`.

    Raises ValueError for an unknown `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    if group is None or level in ALONE:
        return KINDS[kind](student, teacher, bound)
    if level == "mean_weight":
        return group_mean(KINDS[kind](student, teacher, bound), group)
    return KINDS[kind](group_mean(student, group), group_mean(teacher, group), bound)


@torch.no_grad()
def weigh_samples(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    kind: str = "ea",
    upper_bound: float | None = None,
    group: Tensor | None = None,
    level: str = "group",
) -> SampleWeights:
    """`ea_weight` together with the entropies of both networks: (n, C), (n, C) -> three tensors (n,), detached.

    Raises ValueError for an unknown `kind`.
    """
    bound = math.log(logits_teacher.shape[-1]) if upper_bound is None else float(upper_bound)
    entropies = entropy(logits_student, temperature), entropy(logits_teacher, temperature)
    return SampleWeights(weigh_entropies(*entropies, kind, bound, group, level), *entropies)


def ea_weight(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    kind: str = "ea",
    upper_bound: float | None = None,
    group: Tensor | None = None,
    level: str = "group",
) -> Tensor:
    """Sample weights w = H^T/2 (1 + H^S / H_ub) (EA-KD, Eq. 11), detached: (n, C), (n, C) -> (n,).

    `temperature` is the paper's T', independent of the distillation temperature; `upper_bound` is H_ub, log C when
    None (the release divides by the number 100 in places). `group` (n,) int64: samples with the same number get the
    weight of their group's mean entropies (the tokens of one sequence, say); with `level`
    "mean_weight", the mean of their weights. The other kinds are the paper's ablations (Tables 1 and 9) and two
    controls: `constant` gives every sample the batch mean of w, `normalized` divides w by that mean; with several
    processes the batch is the process's own, as for every method that relates the samples of a batch.
    """
    return weigh_samples(logits_student, logits_teacher, temperature, kind, upper_bound, group, level).weight


__all__ = ["ALONE", "KINDS", "LEVELS", "SampleWeights", "ea_weight", "entropy", "weigh_entropies", "weigh_samples"]
