"""Entropy-adaptive sample weights (EA-KD, Su et al., ICCV 2025, arXiv:2311.13621, Eqs. 8-12).

The losses of a sample weigh more when the teacher's output for it has a high entropy. This is the only file that knows
the formulas, and `Distiller` in distillers/base.py the only class that applies them. A sample is anything with its own
pair of logits (an image, a token): the functions here take logits (n, C) or entropies (n,), and return tensors (n,).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mdistiller.functional import entropy, group_mean, in_full_precision, standardize


def _over(value, bound):
    return value / bound if bound else value  # of a single class the bound is 0, and so is every entropy


def _ea(student, teacher, bound):
    return teacher * (1 + _over(student, bound)) / 2


KINDS = {  # functions of the entropies of student and teacher, (n,), and of their upper bound
    "none": lambda student, teacher, bound: torch.ones_like(teacher),
    "base": lambda student, teacher, bound: teacher,
    "interact": lambda student, teacher, bound: _over(teacher * student, bound),
    "ea": _ea,  # Eq. 11: the mean of the two above
    "student": lambda student, teacher, bound: student,
    "inverted_teacher": lambda student, teacher, bound: bound - teacher,
    "inverted_student": lambda student, teacher, bound: bound - student,
    # Two controls that separate the effects of EA: "constant" only rescales the loss, "normalized" only reweights it.
    "constant": lambda student, teacher, bound: _ea(student, teacher, bound).mean().expand_as(teacher),
    "normalized": lambda student, teacher, bound: _normalized(_ea(student, teacher, bound)),
    # Two more controls, which ask whether the entropy matters: "max_logit" measures the difficulty of a sample in
    # another way (see `difficulty`), "random" gives the weights of the batch to its samples in a random order.
    "max_logit": _ea,
    "random": _ea,
}


# The values of EA.LEVEL. For text, "token" means "sample" and "sequence" means "group"; for detection, "image" means
# "mean_weight". "prompt_and_response" means "group" with entropies averaged over all tokens of a sequence, and not only
# over the supervised ones.
LEVELS = ("sample", "group", "token", "sequence", "mean_weight", "image", "prompt_and_response")
PER_SAMPLE = ("sample", "token")  # levels at which each sample has a weight of its own
MEANS_OF_WEIGHTS = ("mean_weight", "image")


def _normalized(weight):
    return weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)


@in_full_precision
def difficulty(logits: Tensor, temperature: float = 3.0, kind: str = "ea") -> Tensor:
    """How difficult samples are to a network with these logits: (n, C) -> (n,), in nats.

    This is the entropy for every kind except `max_logit`. There it is 1 - p, where p is the softmax probability (at
    `temperature`) of the class with the greatest logit, multiplied by log C / (1 - 1 / C). It is therefore 0 for a
    one-hot row and log C for a uniform row, as the entropy is, but does not depend on how the other classes share the
    rest of the probability.
    """
    if kind != "max_logit":
        return entropy(logits, temperature)
    limit, classes = torch.finfo(logits.dtype), logits.shape[-1]
    greatest = (logits / temperature).clamp(limit.min / 4, limit.max / 4).softmax(dim=-1).amax(dim=-1)
    return (1 - greatest).clamp_min(0.0) * (math.log(classes) * classes / max(classes - 1, 1))


class SampleWeights(NamedTuple):
    """Weights (n,) and the entropies (n,) that they come from, in nats, before the mean over groups is taken.

    With the kind `max_logit`, the entropies are what `difficulty` measures instead.
    """

    weight: Tensor
    entropy_student: Tensor
    entropy_teacher: Tensor


@torch.no_grad()
@in_full_precision
def weigh_entropies(
    student: Tensor, teacher: Tensor, kind: str, bound: float, group: Tensor | None = None, level: str = "group"
) -> Tensor:
    """Weights (n,) from the entropies (n,) of student and teacher and their upper bound; see `ea_weight`.

    Raises ValueError for an unknown `kind` or `level`.
    """
    for what, given, known in (("kind", kind, KINDS), ("level", level, LEVELS)):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}: expected one of {', '.join(known)}")
    if level in PER_SAMPLE:
        group = None
    if group is None:
        weight = KINDS[kind](student, teacher, bound)
    elif level in MEANS_OF_WEIGHTS:
        weight = group_mean(KINDS[kind](student, teacher, bound), group)
    else:
        weight = KINDS[kind](group_mean(student, group), group_mean(teacher, group), bound)
    return _shuffled(weight, group) if kind == "random" else weight


def _shuffled(weight, group):
    """The weights in a random order. All samples of a group get the weight that its first sample gets."""
    drawn = weight[torch.randperm(len(weight), device=weight.device)]
    if group is None or not len(weight):
        return drawn
    order = group.argsort(stable=True)
    place, ordered = torch.arange(len(order), device=order.device), group[order]
    starts = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    first = torch.empty_like(order)
    first[order] = order[torch.where(starts, place, 0).cummax(0).values]
    return drawn[first]


class Weighting(NamedTuple):
    """The settings of the weights, as `ea_weight` explains them.

    With `standardized` the entropies are those of the standardized logits, which needs two classes or more.
    """

    kind: str = "ea"
    temperature: float = 3.0
    upper_bound: float | None = None
    level: str = "group"
    standardized: bool = False

    @property
    def by_group(self) -> bool:
        """Whether samples of one group share a weight."""
        return self.level not in PER_SAMPLE

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropies (n,) of logits (n, C), in nats, from which the weights are computed (see `difficulty`)."""
        return difficulty(standardize(logits) if self.standardized else logits, self.temperature, self.kind)

    def weights(self, student: Tensor, teacher: Tensor, num_classes: int, group: Tensor | None = None,
                around: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Weights (n,) from the entropies (n,) of student and teacher.

        `around` holds entropies of the student, entropies of the teacher, and groups, (m,) each, of m further samples.
        They have no loss, but they count in the mean entropies of their groups; `group` (n,) must then be given.
        """
        bound = math.log(num_classes) if self.upper_bound is None else float(self.upper_bound)
        if around is None:
            return weigh_entropies(student, teacher, self.kind, bound, group, self.level)
        groups = torch.cat([group, around[2]])
        means = [group_mean(torch.cat(pair), groups)[: len(group)]
                 for pair in zip((student, teacher), around[:2], strict=True)]
        weight = KINDS[self.kind](*means, bound)
        return _shuffled(weight, group) if self.kind == "random" else weight


@torch.no_grad()
def ea_weight(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    kind: str = "ea",
    upper_bound: float | None = None,
    group: Tensor | None = None,
    level: str = "group",
) -> Tensor:
    """Sample weights w = H^T/2 (1 + H^S / H_ub) (EA-KD, Eq. 12), detached: (n, C), (n, C) -> (n,).

    `temperature` is the paper's T', which is independent of the distillation temperature. `upper_bound` is H_ub; None
    means log C (the released code divides by the number 100 for some methods). `group` (n,) integers give the group of
    each sample, such as the sequence of a token: all samples of a group get the weight of the group's mean entropies,
    or with `level` "mean_weight" (or "image") the mean of their own weights; with "sample" (or "token") groups have no
    effect. The other values of `kind` are the paper's ablations (Tables 1 and 9) and four controls: `constant` gives
    every sample the batch mean of w, `normalized` divides w by that mean, `max_logit` replaces the entropies (see
    `difficulty`), and `random` gives the weights of the batch to its samples in a random order, drawn from PyTorch's
    generator (which a run seeds in every step). With several processes, the batch is that of the process, as in every
    method that relates the samples of a batch. With a single class every weight is 0, except those of `none`. Raises
    ValueError for an unknown `kind` or `level`, a temperature or bound that is not above 0, logits of two shapes or of
    integers, and groups that are no integers (n,).
    """
    _check(logits_student, logits_teacher, temperature, upper_bound, group)
    group = None if group is None else group.long()
    weighting = Weighting(kind, temperature, upper_bound, level)
    entropies = weighting.entropy(logits_student), weighting.entropy(logits_teacher)
    return weighting.weights(*entropies, logits_teacher.shape[-1], group)


def _check(student, teacher, temperature, upper_bound, group):
    """Raise ValueError for what `ea_weight` cannot use. Values on the device are not read."""
    for name, logits in (("logits_student", student), ("logits_teacher", teacher)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            raise ValueError(f"{name}: expected a tensor of floating-point numbers; found {_described(logits)}")
    if student.shape != teacher.shape:
        found = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"expected logits (n, C) of one shape for student and teacher; found {found}")
    if not isinstance(temperature, Tensor) and (isinstance(temperature, str) or not temperature > 0):
        raise ValueError(f"temperature: expected a number above 0; found {temperature!r}")
    if upper_bound is not None and (isinstance(upper_bound, str) or not upper_bound > 0):
        raise ValueError(f"upper_bound: expected a number above 0, or None for log C; found {upper_bound!r}")
    if group is None:
        return
    integers = isinstance(group, Tensor) and not group.is_floating_point() and not group.is_complex()
    if not integers or group.shape != student.shape[:-1]:
        raise ValueError(f"group: expected a tensor of integers ({len(student)},); found {_described(group)}")


def _described(value):
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


__all__ = ["KINDS", "LEVELS", "SampleWeights", "Weighting", "difficulty", "ea_weight", "entropy", "weigh_entropies"]
