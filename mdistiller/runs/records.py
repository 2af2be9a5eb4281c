"""Run folders, read and grouped: runs of one configuration over seeds. Reads files only; needs no torch."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mdistiller.config.defaults import OTHER_SPELLINGS
from mdistiller.config.files import read_yaml
from mdistiller.config.stated import BASE, flatten_checked
from mdistiller.errors import UserError

# What may differ between runs of one configuration: who ran it, where, under which name, the seed, what changes no more
# than rounding, and spellings of what another key holds. The teacher counts by its weights instead of its path.
NOT_IDENTITY = {
    "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.SEED", "EXPERIMENT.DETERMINISTIC",
    "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "DATASET.TEST.BATCH_SIZE",
    "DISTILLER.TEACHER_CHECKPOINT", "DISTILLER.EA", "SOLVER.CHANNELS_LAST", "COMPILE", "DEVICE", *OTHER_SPELLINGS,
}


READ = ("DATASET.TYPE", "DISTILLER.TEACHER", "DISTILLER.STUDENT", "SOLVER.EPOCHS")
HEADLINE = "top1"  # of runs from before summaries named their headline metric
KINDS = {  # of what summary.json and run.json hold, where a reader counts on it
    **dict.fromkeys(("epoch", "wall_seconds"), (int | float, "a number")),
    **dict.fromkeys(("versions", "overridden"), (dict, "an object")),
    "headline": (str, "the name of a metric"),
}
NUMBERS = ("last_", "best_", "teacher_top", "teacher_loss")  # how names of numbers begin; "..._per_second" is one too


_WORDS = {"top1": "top-1", "top5": "top-5", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "rouge_l": "Rouge-L"}


def metric_words(name: str) -> str:
    """A metric as a table's head writes it."""
    return _WORDS.get(name, name.replace("_", " "))


def counts(key: str, method: str) -> bool:
    """Whether a dotted key says what is trained, given the value of DISTILLER.TYPE."""
    if key in NOT_IDENTITY or key.startswith("LOG."):
        return False
    if key.startswith("DISTILLER.TEACHER"):
        return method != "NONE"
    return not key.startswith("EA.") or method.upper().startswith("EA-")


@dataclass(frozen=True)
class RunRecord:
    """One run folder: its config as dotted keys, its summary and its provenance."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    facts: Mapping[str, Any]  # run.json

    @property
    def done(self) -> bool:
        return self.summary.get("status") == "done"

    @property
    def seed(self) -> int:
        return self.config.get("EXPERIMENT.SEED", 0)

    @property
    def headline(self) -> str:
        """The metric that the best epoch was chosen by, such as top1 (percent)."""
        return self.summary.get("headline") or HEADLINE

    def result(self, epoch: str, metric: str | None = None) -> float | None:
        """The test result of the "last" or "best" epoch: of the headline metric, or of another one."""
        return self.summary.get(f"{epoch}_{metric or self.headline}")

    @property
    def teacher_result(self) -> float | None:
        """The teacher's own result of the headline metric."""
        return self.facts.get(f"teacher_{self.headline}")

    @property
    def rate(self) -> float | None:
        """Samples a second in the last epoch, of images, proposals or tokens."""
        return next((value for key, value in self.summary.items() if key.endswith("_per_second")), None)

    @property
    def method(self) -> str:
        return self.config["DISTILLER.TYPE"] + ("+LS" if self.config.get("DISTILLER.LS") else "")

    @cached_property
    def identity(self) -> str:
        """Equal for runs that differ in nothing but the seed; the teacher counts by its weights, not its path.

        The protocol (epochs, parts of the training images, batch size) is in it, so that no group mixes protocols.
        """
        method = self.config["DISTILLER.TYPE"]
        kept = {key: value for key, value in {**BASE, **self.config}.items() if counts(key, method)}
        return json.dumps([sorted(kept.items()), self.facts.get("teacher_sha256")], default=str)


def read_run(folder: Path) -> RunRecord:
    """The record of one run folder; what is missing or not whole is empty.

    Raises UserError, naming file and key, for a record that is whole and holds something else than a run's.
    """
    config = flatten_checked(read_yaml(folder / "config.yaml"), folder / "config.yaml")
    missing = [key for key in READ if "DISTILLER.TYPE" in config and key not in config]
    if missing:
        raise UserError(f"{folder / 'config.yaml'}: {missing[0]} is missing; a run's config holds every key")
    run = RunRecord(folder, config, _json(folder / "summary.json"), _json(folder / "run.json"))
    for key in (f"last_{run.headline}", f"best_{run.headline}"):
        if run.done and run.summary.get(key) is None:
            raise UserError(f"{folder / 'summary.json'}: {key}: expected a number in the summary of a finished run")
    return run


def find_runs(root: str | Path) -> list[RunRecord]:
    """All run folders at or below `root`, ordered by path."""
    folders = [path.parent for path in sorted(Path(root).rglob("config.yaml"))]
    records = ("run.json", "summary.json")  # without either, config.yaml is somebody else's
    runs = [read_run(folder) for folder in folders if any((folder / name).is_file() for name in records)]
    return [run for run in runs if "DISTILLER.TYPE" in run.config]


def group_runs(runs: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Runs of one configuration together, ordered by seed; the first of each seed counts, copies are left out."""
    groups: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.identity, {}).setdefault(run.seed, run)
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and standard deviation with divisor n - 1 (NaN for a single value)."""
    values = list(values)
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def _json(path):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, found {type(content).__name__}")
    for key, value in content.items():
        number = key.startswith(NUMBERS) or key.endswith("_per_second")
        kind, words = KINDS.get(key, (int | float, "a number") if number else (object, ""))
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{path}: {key}: expected {words}, found {value!r}")
    return content
