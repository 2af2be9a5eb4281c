"""`distill` and `from_config`: a method around two networks, for your own training loop."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.config import errors_name_files
from mdistiller.distillers import DISTILLERS, Distiller, build_distiller
from mdistiller.engine import checkpoints
from mdistiller.engine.setup import build_run, prepare_device
from mdistiller.errors import UserError, first_line
from mdistiller.library.arguments import (
    check_example,
    check_numbers,
    check_samples,
    labels_of,
    pair_of_numbers,
    pair_of_taps,
)
from mdistiller.library.loop import Configured, Distillation, stored_suffice
from mdistiller.library.networks import Metadata, adapt, at_own_input, call, split_again
from mdistiller.library.settings import canonical_method, load, settings
from mdistiller.library.tasks import Samples, Texts, as_language_model, causal
from mdistiller.models import build_model
from mdistiller.models.base import modes_kept
from mdistiller.models.transparent import Normalisation
from mdistiller.models.wrapped import first_convolution
from mdistiller.registry import split_ea

log = logging.getLogger("mdistiller")
SMALL = 32  # default side in pixels of the image with which a user's network is probed
Taps = Sequence[str] | tuple[Sequence[str], Sequence[str]]


def distill(
    student: nn.Module | str,
    teacher: nn.Module | str | None,
    method: str = "EA-KD",
    *,
    taps: Taps | None = None,
    example: Any = None,
    image_size: int | None = None,
    normalization: Normalisation | str | None = "student",
    targets: Any = None,
    num_train: int | None = None,
    num_classes: int | None = None,
    family: str = "cifar",
    student_checkpoint: str | Path | None = None,
    teacher_checkpoint: str | Path | None = None,
    **keywords: Any,
) -> Distillation:
    """A method around a student and a teacher, as a module that turns a batch into a loss, see `Distillation`.

    `student` and `teacher` are modules of any library that return logits (n, C), (logits, features) or an object with
    `.logits`. For causal language models of transformers the samples are tokens. Names as in the YAML files are also
    accepted ("resnet8x4", "timm:vit_tiny_patch16_224"), together with `num_classes`, `family` and checkpoints (a file,
    "pretrained", or "random" for a teacher). The teacher is frozen; it is None for a method without a teacher, or if
    every batch brings `teacher_logits`.

    `method` is a name of `methods()`. `keywords` are the settings of its node in docs/config.md, in upper or lower case
    (BETA=8.0, ce_weight=0.1), and EA_KIND, EA_TEMPERATURE, LS, LABEL_SMOOTHING, ...

    Methods that compare features use the outputs of the modules in `taps`: paths within student and teacher, from
    shallow to deep, as a pair of lists or one list for both (default: found by probing). Shapes come from a pass in
    eval mode on `example`, a batch of the user's inputs, or on a blank image of `image_size`.

    The student gets the batch unchanged. A teacher of timm or torchvision gets it in its own normalisation, and in its
    own size if it accepts only one. `normalization` describes the batch: (mean, deviation), "student" for that of the
    student's library, or None for no conversion. Methods that remember every training image need the training set's
    labels, `targets` (N,). Raises UserError, in one line, for invalid arguments.
    """
    check_numbers(image_size=image_size, num_classes=num_classes, num_train=num_train)
    if example is not None:
        check_example(example)
    targets, taps, normalization = labels_of(targets, num_train), pair_of_taps(taps), pair_of_numbers(normalization)
    given = (("student", student, student_checkpoint), ("teacher", teacher, teacher_checkpoint))
    networks = [_network(role, network, num_classes, family, path) for role, network, path in given]
    task = "language" if any(network is not None and causal(network) for network in networks) else "classification"
    method = canonical_method(method, task)
    *arguments, _ = inspect.signature(distill).parameters  # without `keywords`
    cfg = settings(method, task, keywords, arguments)
    _check_needs(method, *networks, targets, num_train)
    for role, network in zip(("STUDENT", "TEACHER"), networks, strict=True):
        cfg.DISTILLER[role] = type(network).__name__ if network is not None else ""
    number = num_train or (None if targets is None else len(targets))
    metadata = {"name": "own", "targets": targets, "image_size": image_size, "num_train": number}
    if task == "language":
        return _of_texts(cfg, method, networks, metadata)
    return _of_samples(cfg, method, networks, metadata | {"num_classes": num_classes}, taps, example, normalization)


def _check_needs(method, student, teacher, targets, num_train):
    """Raise UserError if a method lacks a teacher of its own, or the labels or number of all training images."""
    if teacher is None and DISTILLERS[method].needs_teacher and not stored_suffice(DISTILLERS[method]):
        raise UserError(f"distill: {method} needs a teacher; found None")
    if teacher is student:
        raise UserError(
            "distill: student and teacher are one object, so the divergence would stay 0; build a second network or "
            "copy it (copy.deepcopy)"
        )
    if "index" in inspect.signature(DISTILLERS[method].sample_losses).parameters and targets is num_train is None:
        raise UserError(
            f"distill: {method} remembers every training image: pass the labels of all (targets=...), or with batches "
            "that hold `contrast` their number (num_train=...)"
        )


def _network(role, network, num_classes, family, checkpoint) -> nn.Module | None:
    """The given module, or the network of that name with its weights."""
    if isinstance(network, nn.Module) or (network is None and role == "teacher"):
        if checkpoint is not None:
            raise UserError(f"distill: {role}_checkpoint: goes with a name; found a module, which holds its weights")
        check_samples(role, network)
        return network
    if not isinstance(network, str):
        raise UserError(f"distill: {role}: expected a module or a name; found {type(network).__name__}")
    if num_classes is None:
        raise UserError(f"distill: {role} {network!r} is a name: say its classes (num_classes=...)")
    if role == "teacher" and checkpoint is None:
        raise UserError(
            f"distill: teacher {network!r} is a name: say its weights (teacher_checkpoint=...): a file, "
            "'pretrained' or 'random'"
        )
    built = build_model(network, num_classes, family, pretrained=checkpoint == "pretrained")
    if checkpoint not in (None, "pretrained", "random"):
        checkpoints.load_to_train(built, checkpoint, f"{network} with {num_classes} classes", part=role == "student")
    return built


def _of_texts(cfg: CfgNode, method: str, networks, metadata) -> Distillation:
    student, teacher = (None if network is None else as_language_model(network) for network in networks)
    metadata["num_classes"] = student.vocabulary
    if teacher is not None and teacher.vocabulary != student.vocabulary:
        raise UserError(
            "distill: teacher and student need one vocabulary; found student "
            f"{student.vocabulary}, teacher {teacher.vocabulary}"
        )
    task = Texts(cfg, SimpleNamespace(**metadata), [network for network in (student, teacher) if network is not None])
    distiller = build_distiller(cfg, student, _or_stored(teacher, method), metadata, task)
    return Distillation(distiller, *networks)


def _of_samples(cfg, method, networks, metadata, taps, example, normalization) -> Distillation:
    student, teacher = networks
    features = DISTILLERS[method].inputs == "features"
    own = [Metadata(network) if network is not None else None for network in networks]
    size = metadata["image_size"] or next((one.size for one in own if one is not None and one.size), SMALL)
    blank = _Blank(None if example is None else _kept(example), size, student)
    adapted = [
        None if network is None else adapt(network, path, features, blank)
        for network, path in zip(networks, taps, strict=True)
    ]
    if teacher is not None and not isinstance(example, Mapping):
        data = own[0].normalisation if normalization == "student" else normalization
        given = example.shape[-1] if isinstance(example, Tensor) else metadata["image_size"]
        adapted[1] = at_own_input(adapted[1], own[1], data, given)
        if adapted[1] is not networks[1] and hasattr(adapted[1], "convert"):
            adapted[1].to(next(teacher.parameters()).device)
            log.info("the teacher gets the images in its own normalisation%s", _sized(adapted[1].size))
    if metadata["num_classes"] is None:
        metadata["num_classes"] = _count_classes(adapted[0], blank, features)
    adapted[1] = _or_stored(adapted[1], method)
    task = Samples(cfg, SimpleNamespace(**metadata), blank)
    metadata["image_size"] = size if not isinstance(example, Tensor) else example.shape[-1]
    if features:
        _try(adapted, networks, blank)
    try:
        distiller = build_distiller(cfg, *adapted, metadata, task)
    except UserError as error:
        raise UserError(f"distill: {error}") from error.__cause__
    if type(distiller).prepare is not Distiller.prepare:
        log.info("%s looks at training images before a run, and does without them here", method)
    if distiller.deployed() is not distiller.student:
        log.warning("%s trains more than the student gives: evaluate and keep kd.deployed(), not kd.student", method)
    for network in networks:
        split_again(network)
    return Distillation(distiller, *networks)


def _or_stored(teacher, method):
    """The teacher, or where stored logits take its place a module that is never run."""
    return nn.Identity() if teacher is None and DISTILLERS[method].needs_teacher else teacher


def _sized(size):
    return "" if size is None else f", {size} pixels a side"


class _Blank:
    """Callable: network, or a tensor like its weights -> an input of one example."""

    def __init__(self, example: Any, size: int, student: nn.Module):
        convolution = first_convolution(student)
        self.example, self.size = example, size
        self.channels = convolution.in_channels if convolution is not None else 3

    def __call__(self, like: nn.Module | Tensor) -> Any:
        like = like if isinstance(like, Tensor) else next(like.parameters(), torch.zeros(()))
        if self.example is None:
            return torch.zeros(1, self.channels, self.size, self.size, device=like.device, dtype=like.dtype)
        return _first(self.example, like)


def _kept(example):
    """A copy of one example of a batch, so that the rest can be freed."""
    if isinstance(example, Mapping):
        return {name: _kept(value) for name, value in example.items()}
    return example[:1].detach().clone()


def _first(example, like):
    if isinstance(example, Mapping):
        return {name: _first(value, like) for name, value in example.items()}
    kind = like.dtype if example.is_floating_point() else example.dtype
    return example.to(device=like.device, dtype=kind)


@torch.no_grad()
def _pass(network, blank):
    with modes_kept(network):
        return call(network.eval(), blank(network))


def _count_classes(student, blank, features) -> int | None:
    """The number of classes of the student; None if it cannot be run and no method needs it."""
    try:
        return _pass(student, blank).logits.shape[-1]
    except Exception as error:  # of any kind, raised by a user's network
        if features:
            raise UserError(f"distill: student {_unfit(student, error)}") from error
        return None


def _try(adapted, networks, blank):
    for role, network, own in zip(("student", "teacher"), adapted, networks, strict=True):
        try:
            if network is not None:
                _pass(network, blank)
        except UserError as error:
            raise UserError(f"distill: {role}: {error}") from error
        except Exception as error:  # of any kind, raised by a user's network
            raise UserError(f"distill: {role} {_unfit(own, error)}") from error


def _unfit(network, error):
    return (
        f"{type(network).__name__} fails on the input that shapes are learnt from ({first_line(error)}): pass a batch "
        "of your own (example=x), or the pixels a side of its images (image_size=...)"
    )


def from_config(path: str | Path | None = None, *overrides: Any) -> Configured:
    """The distillation of a configuration file with its data, on the configured device; no file is written.

    `overrides` are as on the command line: "KEY", value, ... A loop over `kd.batches(epoch)` with the optimiser of
    the file gives the numbers of tools/train.py, bit for bit. Raises UserError, in one line, for invalid settings.
    """
    cfg = load(path, overrides, "from_config")
    with errors_name_files(cfg):
        run = build_run(cfg, prepare_device(cfg))
        run.distiller.eval().prepare(run.data)  # as a run does before its first step
    run.distiller.train()
    return Configured(run)


def methods() -> dict[str, str]:
    """{name of a method, EA variants included: its description in one line}."""
    lines = {}
    for name in sorted(DISTILLERS):
        first = (inspect.getdoc(DISTILLERS[name]) or name).split("\n\n")[0]
        plain, weighted = split_ea(name)
        line = " ".join(first.split()).rstrip(".:")
        lines[name] = f"{plain} with entropy-adaptive sample weights: {line}" if weighted else line
    return lines
