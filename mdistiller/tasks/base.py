"""What differs between classification, detection and language models, as one object (see `Task`)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.registry import Registry

TASKS = Registry("TASK.TYPE")


class TaskOutput(NamedTuple):
    """What a task makes of a network's pass.

    `logits` (n, C), one row a sample; `features`, see `mdistiller.models.Output`; `group` (n,) int64, which samples
    belong together (an image's proposals, a sequence's tokens), from 0, or None where every sample stands alone;
    `losses`, scalars of the network's own by name, or None; `extra`, what the teacher's pass and the target need of
    the student's pass; `importance` (n,), of mean 1, what each sample counts in a mean, or None where all count alike;
    `head`, what makes logits of rows: where it is given, `logits` holds rows (n, D), from which logits are made later;
    `surroundings`, rows (m, D), their groups (m,) and their head, of further samples that only the weights of groups
    read.
    """

    logits: Tensor
    features: dict[str, Any] = {}
    group: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    extra: Any = None
    importance: Tensor | None = None
    head: "Head | None" = None
    surroundings: "tuple[Tensor, Tensor, Head] | None" = None

    def in_full(self) -> "TaskOutput":
        """The output with the logits (n, C) of all samples."""
        return self if self.head is None else self._replace(logits=self.head(self.logits), head=None)


class Head(NamedTuple):
    """Rows (n, D) to logits (n, C), in the precision of the pass that made the rows.

    With `chunk` above 0, losses that look at each sample alone are computed for so many rows at a time, and once more
    in the backward pass, so that the logits of all samples never exist together.
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
    """What a sample is, what is supervised and what is measured. A sample is whatever has its own pair of logits.

    A subclass sets the declarations and defines the methods that differ from classification's meaning of them.
    """

    headline: str  # the metric by which the best epoch is chosen, and which tables show
    metrics: tuple[str, ...]  # every number that `evaluate` returns and the records keep
    unit: str  # what a loss is the mean of: "images", "proposals", "tokens"
    # A boolean of `progress` -> what the other samples are called: the records say for both parts the mean weight and
    # the share of the distillation loss.
    parts: Mapping[str, str] = MappingProxyType({})

    compares = False  # whether `evaluate` compares a network with the teacher, which is then its `reference`
    reference: nn.Module | None = None  # the teacher with its weights, in eval mode
    results: list | None = None  # what the last `evaluate` found, of JSON's types, for others to score; None: nothing

    def __init__(self, cfg: CfgNode, info):
        self.cfg, self.info = cfg, info

    def network(self, role: str, pretrained: bool = False) -> nn.Module:
        """The network that DISTILLER.TEACHER or DISTILLER.STUDENT (`role`) names, built for the data.

        Raises UserError for a name that is unknown or a network that does not fit the data.
        """
        raise NotImplementedError

    def inputs(self, batch: dict, view: str) -> Any:
        """What a network is given for one view of a batch. Raises ValueError for a view that the batch lacks."""
        raise NotImplementedError

    def run_student(self, network: nn.Module, inputs: Any) -> TaskOutput:
        """The student's pass in train mode."""
        raise NotImplementedError

    def run_teacher(self, network: nn.Module, inputs: Any, student: TaskOutput | None) -> TaskOutput:
        """The teacher's pass, on the samples of the student's pass, without gradient."""
        raise NotImplementedError

    def target(self, batch: dict, student: TaskOutput) -> Tensor:
        """The class of each sample, (n,) int64."""
        raise NotImplementedError

    def supervised(self, outputs: list[TaskOutput], target: Tensor, label_smoothing: float) -> dict[str, Tensor]:
        """The scalar losses of the labels, one output a view; cross-entropy of the samples is called "ce"."""
        raise NotImplementedError

    def progress(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What a training step says of its samples, (n,) each by name; booleans are reported in percent."""
        raise NotImplementedError

    def evaluate(
        self, network: nn.Module, batches: Iterable[dict], device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """The `metrics` of a network in eval mode; under several processes every rank passes its own batches."""
        raise NotImplementedError

    def doubt(self, result: dict[str, float]) -> str | None:
        """A line about a teacher whose result looks wrong, and the usual reasons; None where nothing does."""

    def publish(self, network: nn.Module, folder: Path) -> Path | None:
        """Write a student in the format of the task's own library, below `folder`; returns the place, None if none."""
        return None

    def blank_inputs(self, size: int | tuple[int, int] | None, like: Tensor) -> Any:
        """Inputs of one example without content, for learning the shapes of features; dtype and device of `like`."""
        raise NotImplementedError
