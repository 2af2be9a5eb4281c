"""Checks of arguments of `distill`, before anything is built from them, and of `kd(...)`; each raises UserError."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.config.words import shown
from mdistiller.errors import UserError

OF_MANY = ("torchvision.models.detection", "torchvision.models.segmentation")  # samples in each image
MOST = {"image_size": 2**14, "num_classes": 10**6, "num_train": 2**31 - 1}


def check_numbers(**numbers: int | None) -> None:
    """Each of `image_size`, `num_classes` and `num_train` is None or a positive integer within its limit."""
    for name, number in numbers.items():
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        if number is not None and not (whole and 1 <= number <= MOST[name]):
            raise UserError(f"distill: {name}: expected an integer from 1 to {MOST[name]}; found {shown(number)}")


def check_samples(role: str, network: nn.Module | None) -> None:
    """No detector or segmentation network of torchvision: it gives no logits (n, C) with a row for each image."""
    kind = type(network)
    if kind.__module__.startswith(OF_MANY):
        raise UserError(f"distill: {role}: {kind.__name__} gives no logits (n, C) of a batch; apply ea_weight and "
                        "kd_loss to those of its proposals or pixels, see 'Detectors' in docs/library.md")


def check_epoch(epoch: Any, whole: bool = False) -> Any:
    """None, or a number from 1 on, an integer if it must be `whole`."""
    known = isinstance(epoch, Integral if whole else Real) and not isinstance(epoch, bool) and epoch >= 1
    if not known and (whole or epoch is not None):
        raise UserError(f"kd: epoch: counts from 1; found {shown(epoch)}")
    return epoch


def check_example(example: Any) -> None:
    """A batch of inputs is a tensor, or a mapping of the networks' keywords to tensors, with one sample at least."""
    if isinstance(example, Mapping):
        for value in example.values():
            check_example(value)
    elif not isinstance(example, Tensor) or example.ndim < 1 or not len(example):
        found = f"a tensor {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UserError(f"distill: example: expected a batch of inputs, a tensor or a mapping of them; found {found}")


def labels_of(targets: Any, num_train: int | None = None) -> Tensor | None:
    """The labels (N,) of a training set as integers from 0; N is `num_train`, if that is given too."""
    if targets is None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise UserError(f"distill: targets: expected integers (N,), one for each image; found {shown(targets)}") \
            from None
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or (labels < 0).any():
        raise UserError("distill: targets: expected integers from 0, (N,), one for each image; found "
                        f"{labels.dtype} {tuple(labels.shape)}")
    if num_train not in (None, len(labels)):
        raise UserError(f"distill: num_train: expected {len(labels)}, the number of targets; found {num_train}")
    return labels


def check_stored(logits: Any, inputs: Any, num_classes: int | None) -> None:
    """Stored logits (n, C) have a row for each sample: one row for all would be used for all without an error."""
    rows = len(inputs) if isinstance(inputs, Tensor) else None
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and rows in (None, len(logits))
    if not fits or num_classes not in (None, logits.shape[1]) or not logits.is_floating_point():
        found = type(logits).__name__
        if isinstance(logits, Tensor):
            found = f"a tensor {tuple(logits.shape)}{'' if logits.is_floating_point() else f' of {logits.dtype}'}"
        raise UserError(f"teacher_logits: expected a tensor ({'n' if rows is None else rows}, {num_classes or 'C'}); "
                        f"found {found}")


def pair_of_numbers(given: Any) -> Any:
    """`normalization`: None, "student", or (mean, deviation), a float of each for every channel, deviations above 0."""
    if given is None or (isinstance(given, str) and given == "student"):
        return given
    try:
        mean, deviation = (tuple(float(value) for value in values) for values in given)
    except (TypeError, ValueError):
        mean, deviation = (), ()
    if not mean or len(mean) != len(deviation) or not all(value > 0 for value in deviation):
        raise UserError("distill: normalization: expected (mean, deviation), each with a number for each channel, "
                        f"'student' or None; found {shown(given)}")
    return mean, deviation


def pair_of_taps(taps: Any) -> tuple:
    """The paths of the modules to tap, (the student's, the teacher's), or (None, None)."""
    if taps is None:
        return None, None
    pair = taps if isinstance(taps, list | tuple) else ()
    if pair and all(isinstance(path, str) for path in pair):
        pair = (pair, pair)
    if len(pair) != 2 or not all(isinstance(paths, list | tuple) and all(isinstance(path, str) for path in paths)
                                 for paths in pair):
        raise UserError("taps: expected a pair of lists of module paths, the student's and the teacher's; found "
                        f"{shown(taps)}")
    if len(pair[0]) != len(pair[1]) or not pair[0]:
        raise UserError(f"taps: expected as many of the student as of the teacher; found {len(pair[0])} and "
                        f"{len(pair[1])}")
    return pair[0], pair[1]
