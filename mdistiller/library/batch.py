"""The arguments of `kd(...)`, sorted and checked in every step without waiting for the device."""

import difflib
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from mdistiller.errors import UserError

LABELS = ("labels", "label", "target")  # keywords of the labels in batches of other libraries
OF_METHODS = ("index", "contrast", "image_strong")  # further entries of a batch that methods read
STORED = "teacher_logits"
ALIKE = 0.8  # similarity from which on an unknown keyword is taken for a misspelt one


def sorted_batch(image: Any, target: Any, others: dict[str, Any], known: Collection[str] = ()) -> tuple[Any, Any, dict]:
    """(inputs of the networks, labels, what the method reads) of the arguments of `kd(image, target, **others)`.

    Labels and entries of methods are also taken from a mapping given as `image`; without `image`, `others` are the
    networks' keywords. Raises UserError for a batch of another form or without inputs, for labels given twice, and for
    a keyword that is not in `known`, those of the method, but resembles one of ours: it would be ignored.
    """
    if isinstance(image, list | tuple) or (hasattr(image, "__array__") and not isinstance(image, Tensor)):
        raise UserError(f"kd() takes a tensor, or a mapping of the networks' keywords, and labels beside it: kd(x, y); "
                        f"found {type(image).__name__}")
    if image is None:
        image, others = others, {}
    inputs = dict(image) if isinstance(image, Mapping) else image
    given, extra = [("target", target)], {}
    for source in (others, inputs) if isinstance(inputs, dict) else (others,):
        given += [(name, source.pop(name)) for name in LABELS if name in source]
        extra |= {name: source.pop(name) for name in (*OF_METHODS, STORED) if name in source}
        for name in source:
            if name not in known and meant(name):
                raise UserError(f"kd() has no argument {name!r}; nearest: {meant(name)}")
    given = [(name, labels) for name, labels in given if labels is not None]
    if len(given) > 1:
        raise UserError(f"kd() got the labels twice: as {given[0][0]} and as {given[1][0]}")
    if isinstance(inputs, dict) and not inputs:
        raise UserError("kd() needs a batch: kd(x, y), kd(x), or the networks' own keywords")
    return inputs, given[0][1] if given else None, extra | others


@cache
def meant(name: str) -> str:
    """The argument of `kd` that an unknown keyword resembles, or ""."""
    if name == "logits_teacher":
        return STORED
    return next(iter(difflib.get_close_matches(name, (STORED, *OF_METHODS, "epoch", *LABELS), 1, ALIKE)), "")


def check_batch(inputs: Any, target: Any, method: str, reads_classes: bool) -> Tensor | None:
    """The labels as the losses take them: class numbers (n,) in int64, or class probabilities (n, C), as mixup makes.

    Raises UserError for an empty batch, and for labels of another form, or of another number than the samples.
    """
    values = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    sizes = {len(value) for value in values if isinstance(value, Tensor) and value.dim()}
    if sizes == {0}:
        raise UserError("kd() needs a sample at least; found an empty batch")
    if target is None:
        return None
    soft = isinstance(target, Tensor) and target.is_floating_point()
    if not isinstance(target, Tensor) or target.dim() != 1 + soft or target.is_complex():
        found = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise UserError("labels: expected class numbers (n,) of type torch.int64 (argmax of one-hot rows); found "
                        + found)
    if soft and reads_classes:
        raise UserError(f"labels: {method} reads each sample's class; expected class numbers (n,) of type torch.int64; "
                        f"found probabilities {tuple(target.shape)}")
    if sizes and len(target) not in sizes:
        raise UserError(f"labels: expected one for each sample, {next(iter(sizes))}; found {len(target)}")
    return target if soft else target.long()


def check_index(index: Any, target: Tensor | None) -> Tensor:
    """The numbers (n,) of the samples in int64. Raises UserError for anything else."""
    fits = isinstance(index, Tensor) and index.dim() == 1 and not index.is_floating_point() and not index.is_complex()
    if not fits or (target is not None and len(index) != len(target)):
        found = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise UserError("index: expected the numbers of the samples, a tensor (n,) of type torch.int64; found " + found)
    return index.long()
