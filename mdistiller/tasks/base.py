"""The class `Task`, which contains everything that differs between classification, detection and language models."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.registry import Registry

TASKS = Registry("TASK.TYPE")
OFFERS = {  # what a method may need of a task besides logits, see `Task.offers` -> its name in messages
    "feats": "a feature map of each sample (feats)",
    "image_feats": "feature maps of whole images (feats)",
    "pooled_feat": "a feature vector of each sample (pooled_feat)",
    "classifier": "networks that end in a linear layer of the data's classes",
    "index": "the number of each sample in the training set (index)",
    "image_strong": "a second view of each image",
}


class TaskOutput(NamedTuple):
    """The result of a forward pass, for n samples.

    `logits`        (n, C), one row for each sample
    `features`      see `mdistiller.models.Output`
    `group`         (n,) int64, from 0: the image of a proposal or the sequence of a token; None without groups
    `losses`        scalar losses that the network computes itself, by name, or None
    `extra`         data of the student's pass that the teacher's pass and the target need
    `importance`    (n,) with mean 1: factor of each sample in a mean, or None if all are equal
    `head`          if given, `logits` are rows (n, D) from which the head makes the logits later
    `regression`    (n, R), numbers that the network predicts for each sample, such as a detector's box offsets, or None
    `surroundings`  rows (m, D), groups (m,) and head of further samples, which have no loss but count in the mean
                    entropies of their groups; or None
    """

    logits: Tensor
    features: dict[str, Any] = {}
    group: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    extra: Any = None
    importance: Tensor | None = None
    head: "Head | None" = None
    surroundings: "tuple[Tensor, Tensor, Head] | None" = None
    regression: Tensor | None = None

    def in_full(self) -> "TaskOutput":
        """The output with logits (n, C) instead of rows and a head."""
        return self if self.head is None else self._replace(logits=self.head(self.logits), head=None)


class Head(NamedTuple):
    """A function from rows (n, D) to logits (n, C), in the precision of the pass that made the rows.

    If `chunk` is above 0, losses that only read one sample at a time are computed for `chunk` rows at once, and again
    in the backward pass, so that the logits of all samples are never in memory together.
    """

    network: nn.Module
    num_classes: int
    chunk: int = 0
    autocast: torch.dtype | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        enabled = self.autocast is not None
        with torch.autocast(rows.device.type, dtype=self.autocast, enabled=enabled):
            return self.network(rows if enabled else rows.to(next(self.network.parameters()).dtype))


class Task:
    """Defines samples, supervised losses and metrics. A sample is anything with its own pair of logits.

    A subclass sets the attributes and defines the methods.
    """

    headline: str  # the metric that chooses the best epoch and is shown in tables
    metrics: tuple[str, ...]  # names of all numbers that `evaluate` returns and a run stores
    unit: str  # name of the samples over which a loss is averaged: "images", "proposals" or "tokens"
    supervised_terms: tuple[str, ...] = ("ce",)  # names of the losses of `supervised`
    # A boolean of `progress` -> name of the other samples. For both parts, the metrics of a run contain the mean weight
    # and the share of the distillation loss.
    parts: Mapping[str, str] = MappingProxyType({})

    offers: tuple[str, ...] = tuple(OFFERS)  # a method that needs anything else of `OFFERS` is refused
    teacher_waits = True  # whether the teacher's pass reads the student's output, which must then be there
    head_maps = 0  # number of feature maps, from the finest on, that `head` reads; 0 if there is no `head`
    export_formats: tuple[str, ...] = ("pth", "safetensors", "onnx")  # formats in which a student can be exported
    compares = False  # whether `evaluate` compares a network with the teacher, which is then its `reference`
    reference: nn.Module | None = None  # the teacher with its weights, in eval mode
    results: list | None = None  # outputs of the last `evaluate` as JSON types, to be scored by other programs, or None

    def __init__(self, cfg: CfgNode, info):
        self.cfg, self.info = cfg, info

    def network(self, role: str, pretrained: bool = False) -> nn.Module:
        """The network that DISTILLER.TEACHER or DISTILLER.STUDENT (`role`) names, built for the data.

        Raises UserError for an unknown name or a network that does not fit the data.
        """
        raise NotImplementedError

    def inputs(self, batch: dict, view: str) -> Any:
        """The inputs of a network for one view of a batch, "image" unless `offers` names another.

        Raises ValueError for a view that the batch lacks.
        """
        raise NotImplementedError

    def run_student(self, network: nn.Module, inputs: Any) -> TaskOutput:
        """The student's forward pass; in eval mode it is a dry run, which may have no samples."""
        raise NotImplementedError

    def run_teacher(self, network: nn.Module, inputs: Any, student: TaskOutput | None) -> TaskOutput:
        """The teacher's forward pass, without gradient, for the samples of the student's pass."""
        raise NotImplementedError

    def head(self, network: nn.Module, maps: list[Tensor], student: TaskOutput) -> TaskOutput:
        """The output of a network's last layers for `head_maps` feature maps and the samples of the student's pass."""
        raise NotImplementedError

    def target(self, batch: dict, student: TaskOutput) -> Tensor:
        """The class of each sample, (n,) int64."""
        raise NotImplementedError

    def supervised(self, outputs: list[TaskOutput], target: Tensor, label_smoothing: float) -> dict[str, Tensor]:
        """The scalar losses of the labels, from one output for each view; the cross-entropy has the name "ce"."""
        raise NotImplementedError

    def progress(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Values (n,) of the samples of a training step by name, for the log; booleans are logged in percent."""
        raise NotImplementedError

    def evaluate(
        self, network: nn.Module, batches: Iterable[dict], device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """The `metrics` of a network in eval mode; with several processes, each rank passes its own batches.

        Raises ValueError if no rank has a sample.
        """
        raise NotImplementedError

    def check_evaluation(self) -> None:
        """Raise UserError if a library that `evaluate` needs is not installed, before anything is trained."""

    def doubt(self, result: dict[str, float]) -> str | None:
        """One line about a teacher's result that looks wrong, with the usual reasons, or None."""

    def publish(self, network: nn.Module, folder: Path) -> Path | None:
        """Write the student below `folder` in the format of the task's library; returns the path, or None if unused."""
        return None

    def export_metadata(self) -> dict:
        """Entries of an export's student.json that differ from those of an image classifier, as JSON types."""
        return {}

    def script(self, network: nn.Module) -> torch.jit.ScriptModule:
        """A network in eval mode as a TorchScript module; for tasks with "torchscript" among `export_formats`."""
        raise NotImplementedError

    def blank_inputs(self, size: int | tuple[int, int] | None, like: Tensor) -> Any:
        """Inputs of one blank example, to find the shapes of features, with the dtype and device of `like`."""
        raise NotImplementedError
