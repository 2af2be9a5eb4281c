"""Mathematical functions of tensors that several packages share. Imports only PyTorch."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P, R = ParamSpec("P"), TypeVar("R")
HALF = (torch.float16, torch.bfloat16)
SEQUENCES = (list, tuple)
UNCHANGED = nullcontext()


def wide(value: Any) -> Any:
    """A tensor in half precision as float32, also within lists, tuples (which become lists) and dicts.

    Anything else is returned as it is. The gradient has the dtype of the given tensor.
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, SEQUENCES):
        return [wide(child) for child in value]
    if isinstance(value, dict):
        return type(value)((key, wide(child)) for key, child in value.items())  # a class of features explains its keys
    return value


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, SEQUENCES):
            yield from _tensors(value)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function gets tensors in half precision as float32 (see `wide`) and runs outside of autocast.

    Sums of squares of maps overflow in float16, and bfloat16 has three decimal digits. Autocast would compute products
    of float32 matrices in half precision too.
    """

    @functools.wraps(function)
    def computed(*args, **kwargs):
        kind = next((tensor.device.type for tensor in _tensors((*args, *kwargs.values()))), "cpu")
        lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if lowered else UNCHANGED:
            return function(*wide(args), **wide(kwargs))

    return computed


@in_full_precision
def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Shannon entropy of softmax(logits / temperature), in nats (EA-KD, Eq. 8): (n, C) -> (n,).

    It is exactly 0 for a one-hot row and log C for a uniform one. Infinite logits are replaced by large finite ones, so
    the result is finite for every row without NaN. It is computed in at least float32; float64 stays float64.
    """
    limit = torch.finfo(logits.dtype)
    log_p = F.log_softmax((logits / temperature).clamp(limit.min / 4, limit.max / 4), dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1).clamp_max(0.0).abs()


@in_full_precision
def standardize(logits: Tensor) -> Tensor:
    """Each row minus its mean, divided by its standard deviation (Sun et al., arXiv:2403.01427): (n, C) -> (n, C).

    The standard deviation has the divisor C - 1, and 1e-7 is added to it, as released. All values of a row become NaN
    if one of its logits is infinite, or if there is only one class.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


@in_full_precision
def kl_divergence(log_p_student: Tensor, log_p_teacher: Tensor) -> Tensor:
    """KL divergence from teacher to student, in nats, from log-probabilities: (..., C), (..., C) -> (...).

    The probabilities of a row must sum to 1, but a row of the teacher may have none (all -inf): its divergence is 0. A
    class to which the teacher gives the probability 0 (-inf) contributes 0 and no gradient, even if the student gives
    it 0 too. The divergence is infinite if only the student gives 0 to a class.
    """
    return kl_by_class(log_p_student, log_p_teacher).sum(dim=-1)


def kl_by_class(log_p_student: Tensor, log_p_teacher: Tensor) -> Tensor:
    """The terms of `kl_divergence` before their sum over the classes: (..., C), (..., C) -> (..., C).

    Each is p log(p / q) - (p - q), which is at least 0. The second part sums to 0 and has no gradient; without it the
    sum for a student close to its teacher would be a small difference of large terms, and negative at times.
    """
    p_teacher, absent = log_p_teacher.exp(), log_p_teacher.isneginf()
    ratio = (log_p_teacher - log_p_student).masked_fill(absent, 0.0)  # 0 times infinity would be NaN
    p_student = log_p_student.detach().exp().masked_fill_(absent.all(dim=-1, keepdim=True), 0.0)  # no teacher: 0
    return torch.addcmul(p_student.sub_(p_teacher.detach()), p_teacher, ratio)


def cross_entropy(log_p_student: Tensor, log_p_teacher: Tensor) -> Tensor:
    """-p_teacher log p_student of each class, in nats; 0 for classes to which the teacher gives the probability 0.

    Log-probabilities (..., C), (..., C) -> (..., C).
    """
    return -log_p_teacher.exp() * log_p_student.masked_fill(log_p_teacher.isneginf(), 0.0)


def log_softened(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """log softmax(logits / temperature): (..., C) -> (..., C). Logits of -inf have the probability 0.

    `temperature` is a number, or a tensor that broadcasts with the logits and gets a gradient if it requires one.
    """
    if not isinstance(temperature, Tensor):
        return F.log_softmax(logits / temperature, dim=-1)
    absent = logits.isneginf()  # whose gradient for the temperature would be 0 times infinity
    return (logits.masked_fill(absent, 0.0) / temperature).masked_fill(absent, -math.inf).log_softmax(dim=-1)


@in_full_precision
def softened_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """KL divergence from teacher to student at a temperature, in nats: (n, C), (n, C) -> (n,).

    There is no factor temperature**2. `temperature` is a number, or a tensor that broadcasts with (n, 1).
    """
    return kl_divergence(log_softened(logits_student, temperature), log_softened(logits_teacher, temperature))


def warm_up(epoch: int, epochs: float) -> float:
    """Factor of a loss in an epoch (from 1): it rises linearly to 1 within `epochs` epochs; 0 epochs: always 1."""
    return min(epoch / max(epochs, 1), 1.0)


@in_full_precision
def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Each value replaced by the mean of its group: (n,), (n,) int64 with any group numbers -> (n,)."""
    order = group.argsort()  # renumbers the groups from 0, without waiting for the device
    ordered = group[order]
    number = torch.empty_like(group)
    number[order] = torch.cat([ordered[:1] * 0, (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
    return mean_by_group(values, number, len(values))[number]


@in_full_precision
def mean_by_group(values: Tensor, group: Tensor, num_groups: int, empty: float = 0.0) -> Tensor:
    """Mean of the values in each group 0..num_groups-1, or `empty` without values: (n,), (n,) -> (num_groups,)."""
    sums, counts = (values.new_zeros(num_groups).index_add(0, group, one) for one in (values, torch.ones_like(values)))
    return torch.where(counts > 0, sums / counts.clamp_min(1), empty)


def sequence_means(group: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """Factors that make the mean over samples a mean of the means of their groups; their own mean is 1: (n,) -> (n,).

    `group` (n,) int64 holds numbers from 0 to `num_groups` - 1; a group without samples does not count.
    """
    counts = group.new_zeros(num_groups).index_add(0, group, torch.ones_like(group))
    return counts.sum().to(dtype) / ((counts > 0).sum() * counts[group])
