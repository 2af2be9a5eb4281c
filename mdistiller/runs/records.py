"""Run folders, read and grouped: runs of one configuration over seeds. Reads files only; needs no torch."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from mdistiller.config.files import read_yaml
from mdistiller.config.keys import OTHER_SPELLINGS
from mdistiller.config.stated import BASE, flatten_checked
from mdistiller.errors import UserError
from mdistiller.registry import split_ea
from mdistiller.runs.kept import METRICS, RUNS, read_kept, read_kept_metrics
from mdistiller.runs.reading import checked_record, is_measurement, read_metrics, read_record, read_text

# What may differ between runs of one configuration: who ran it, where, under which name, the seed, what changes no more
# than rounding, and spellings of what another key holds. The teacher counts by its weights instead of its path.
NOT_IDENTITY = {
    "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.SEED", "EXPERIMENT.DETERMINISTIC",
    "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "DATASET.TEST.BATCH_SIZE",
    "DISTILLER.TEACHER_CHECKPOINT", "DISTILLER.EA", "SOLVER.CHANNELS_LAST", "COMPILE", "DEVICE",
    "LM.TEACHER_KL", *OTHER_SPELLINGS,
}


READ = ("DATASET.TYPE", "DISTILLER.TEACHER", "DISTILLER.STUDENT", "SOLVER.EPOCHS")
HEADLINE = "top1"  # of runs from before summaries named their headline metric
_WORDS = {"top1": "top-1", "top5": "top-5", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "rouge_l": "Rouge-L",
          "teacher_kl": "KL from the teacher"}


def metric_words(name: str) -> str:
    """A metric as a table's head writes it."""
    return _WORDS.get(name, name.replace("_", " "))


def counts(key: str, method: str) -> bool:
    """Whether a dotted key says what is trained, given the value of DISTILLER.TYPE."""
    if key in NOT_IDENTITY or key.startswith("LOG."):
        return False
    if key.startswith("DISTILLER.TEACHER"):
        return method != "NONE"
    return not key.startswith("EA.") or split_ea(method)[1]


@dataclass(frozen=True)
class RunRecord:
    """One run: its config as dotted keys, its summary and its provenance, of a run folder or of a kept study."""

    path: Path  # of a kept run, where its folder was beside the others
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    facts: Mapping[str, Any]  # run.json
    kept: Mapping[str, Any] | None = None  # its line of runs.jsonl

    @property
    def done(self) -> bool:
        return self.summary.get("status") == "done"

    @property
    def seed(self) -> int:
        return self.config.get("EXPERIMENT.SEED", 0)

    def metrics(self) -> list[dict]:
        """Numbers by name, an epoch each. Raises UserError for lines of something else."""
        if self.kept is None:
            return read_metrics(self.path / "metrics.jsonl")
        return _kept_metrics(self.path.parent).get(self.path.name, [])

    def config_text(self) -> str:
        """The config as YAML."""
        if self.kept is not None:
            return yaml.safe_dump(self.kept["config"], sort_keys=True)
        return read_text(self.path / "config.yaml")

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
    path = folder / "config.yaml"
    records = (read_record(folder / name) for name in ("summary.json", "run.json"))
    run = RunRecord(folder, _config(read_yaml(path), path), *records)
    return _checked(run, folder / "summary.json")


def _config(tree, source):
    config = flatten_checked(tree, source)
    missing = [key for key in READ if "DISTILLER.TYPE" in config and key not in config]
    if missing:
        raise UserError(f"{source}: {missing[0]} is missing; a run's config holds every key")
    return config


def _checked(run, source):
    for key in (f"last_{run.headline}", f"best_{run.headline}"):
        if run.done and not is_measurement(run.summary.get(key)):
            raise UserError(f"{source}: {key}: expected a number in the summary of a finished run")
    return run


def find_runs(root: str | Path) -> list[RunRecord]:
    """All runs at or below `root`, run folders and kept studies, ordered by path."""
    folders = [path.parent for path in sorted(Path(root).rglob("config.yaml"))]
    records = ("run.json", "summary.json")  # without either, config.yaml is somebody else's
    runs = [read_run(folder) for folder in folders if any((folder / name).is_file() for name in records)]
    for path in Path(root).rglob(RUNS):
        for name, row in read_kept(path).items():
            source = f"{path}: {name}"
            records = (checked_record(row[part], source) for part in ("summary", "run"))
            run = RunRecord(path.parent / name, _config(row["config"], source), *records, kept=row)
            runs.append(_checked(run, source))
    return sorted((run for run in runs if "DISTILLER.TYPE" in run.config), key=lambda run: run.path)


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


@cache
def _kept_metrics(folder):
    return read_kept_metrics(folder / METRICS)
