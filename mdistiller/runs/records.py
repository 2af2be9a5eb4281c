"""Read run folders and group the runs of one configuration over its seeds. Does not import torch."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

import mdistiller.config.former as former
from mdistiller.config.files import read_yaml
from mdistiller.config.keys import OTHER_SPELLINGS
from mdistiller.config.stated import BASE, flatten_checked
from mdistiller.errors import UserError
from mdistiller.files import read_text
from mdistiller.plugins import NAMED_BY, recorded_files, without_folders
from mdistiller.registry import split_ea
from mdistiller.runs.folders import folders_below
from mdistiller.runs.kept import METRICS, RUNS, read_kept, read_kept_metrics
from mdistiller.runs.reading import (
    checked_record,
    checked_scores,
    is_measurement,
    read_answers,
    read_metrics,
    read_record,
)

# Keys that may differ between runs of one configuration: names, folders, the seed, settings that only change rounding,
# and other spellings of a key. Teacher and data are identified by their SHA-256 instead of their paths.
NOT_IDENTITY = {
    "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.SEED", "EXPERIMENT.DETERMINISTIC",
    "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "DATASET.TEST.BATCH_SIZE",
    "DISTILLER.TEACHER_CHECKPOINT", "DISTILLER.EA", "SOLVER.CHANNELS_LAST", "SOLVER.CUDA_GRAPH", "COMPILE", "DEVICE",
    "LM.TEACHER_KL", "TEACHER_CACHE.DIR", "TEACHER_CACHE.KIND", "TEACHER_CACHE.CHECK", *OTHER_SPELLINGS,
}
HEADLINE = "top1"  # of older runs, whose summary does not name the headline metric
_WORDS = {"top1": "top-1", "top5": "top-5", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "rouge_l": "Rouge-L",
          "teacher_kl": "KL from the teacher"}


def metric_words(name: str) -> str:
    """The name of a metric in the header of a table."""
    return _WORDS.get(name, name.replace("_", " "))


def counts(key: str, method: str) -> bool:
    """Whether a dotted key belongs to the identity of a configuration; `method` is the value of DISTILLER.TYPE."""
    if key in NOT_IDENTITY or key.startswith("LOG."):
        return False
    if key.startswith("DISTILLER.TEACHER"):
        return method != "NONE"
    return not key.startswith("EA.") or split_ea(method)[1]


@dataclass(frozen=True)
class RunRecord:
    """One run, read from a run folder or from an archived study (`mdistiller.runs.kept`)."""

    path: Path  # the run folder; of an archived run, a path beside runs.jsonl with the run's name
    config: Mapping[str, Any]  # by dotted key
    summary: Mapping[str, Any]  # summary.json
    metadata: Mapping[str, Any]  # run.json: the metadata of the run
    kept: Mapping[str, Any] | None = None  # the line of runs.jsonl of an archived run

    @property
    def done(self) -> bool:
        return self.summary.get("status") == "done"

    @property
    def seed(self) -> int:
        return self.config.get("EXPERIMENT.SEED", 0)

    @property
    def epochs(self) -> int | None:
        """The number of epochs of the whole run; of one whose length is counted in updates, that of its evaluations."""
        found = self.summary.get("epochs", self.config.get("SOLVER.EPOCHS"))
        return found if is_measurement(found) else None

    @property
    def on_validation(self) -> bool:
        """Whether the results are those of validation images, because the run does not measure the test set."""
        return self.config.get("DATASET.TEST.ENABLED") is False

    def metrics(self) -> list[dict]:
        """The metrics by name, one dict per epoch. Raises UserError for an invalid line."""
        if self.kept is None:
            return read_metrics(self.path / "metrics.jsonl")
        return _kept_metrics(self.path.parent).get(self.path.name, [])

    @cached_property
    def answers(self) -> dict[str, dict]:
        """Scores of generated answers by checkpoint, set and n-gram rule, see `read_answers`."""
        if self.kept is None:
            return read_answers(self.path)
        source = f"{self.path.parent / RUNS}: {self.path.name}: answers"
        scored = checked_record(self.kept.get("answers", {}), source)
        return {checkpoint: {name: checked_scores(rules, f"{source}: {name[:80]}") for name, rules in sets.items()}
                for checkpoint, sets in scored.items() if isinstance(sets, dict)}

    def config_text(self) -> str:
        """The config as YAML."""
        if self.kept is not None:
            return yaml.safe_dump(self.kept["config"], sort_keys=True)
        return read_text(self.path / "config.yaml")

    @property
    def headline(self) -> str:
        """The metric by which the best epoch was selected, such as top1 (percent)."""
        return self.summary.get("headline") or HEADLINE

    def result(self, epoch: str, metric: str | None = None) -> float | None:
        """The test result of the "last" or "best" epoch in `metric` (None: the headline metric)."""
        return self.summary.get(f"{epoch}_{metric or self.headline}")

    @property
    def teacher_result(self) -> float | None:
        """The teacher's test result in the headline metric."""
        return self.metadata.get(f"teacher_{self.headline}")

    @property
    def teacher_sha256(self) -> str | None:
        return self.metadata.get("teacher_sha256")

    @property
    def data_sha256(self) -> str | None:
        """The fingerprint of the training images or texts; None for records of older versions."""
        return self.metadata.get("data_sha256")

    @property
    def own_files(self) -> Mapping[str, str]:
        """Name and SHA-256 of the user's Python files that the run's configuration names; empty in older records."""
        return recorded_files(self.metadata)

    @property
    def rate(self) -> float | None:
        """Samples (images, proposals or tokens) per second in the last epoch."""
        return next((value for key, value in self.summary.items() if key.endswith("_per_second")), None)

    @property
    def method(self) -> str:
        return self.config["DISTILLER.TYPE"] + ("+LS" if self.config.get("DISTILLER.LS") else "")

    @cached_property
    def identity(self) -> str:
        """A text that is equal for runs which differ only in the seed and in keys that do not count.

        It includes the protocol (epochs, fraction of the images, batch size) and the SHA-256 of the teacher's weights.
        What runs of older versions do not name, and the folders of Python files, are left to `group_runs`.
        """
        method, unnamed = self.config["DISTILLER.TYPE"], self.unnamed_by_older
        kept = {key: without_folders(value) for key, value in {**BASE, **self.config}.items()
                if counts(key, method) and key not in unnamed}
        return json.dumps([sorted(kept.items()), self.teacher_sha256], default=str)

    @cached_property
    def unnamed_by_older(self) -> dict[str, Any]:
        """What runs of older versions may not name: the data, and the keys of the method that have their defaults."""
        method = self.config["DISTILLER.TYPE"]
        return self.named_data | {key: value for key, value in self.config.items()
                                  if counts(key, method) and key not in BASE and key not in self.changed}

    @cached_property
    def changed(self) -> set[str]:
        """The keys that do not have the defaults of this version, among them all such keys of the method.

        Defaults of methods are known only to their classes; run.json therefore lists what differs from them.
        """
        return former.changed(self.config, self.metadata.get("overridden") or {})

    @property
    def named_data(self) -> dict[str, str]:
        """The SHA-256 of the data by "data"; empty in runs of older versions."""
        return {} if self.data_sha256 is None else {"data": self.data_sha256}


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; the content of a missing or incomplete file is empty.

    Raises UserError, naming file and key, for a file with invalid content.
    """
    path = folder / "config.yaml"
    parts = (read_record(folder / name) for name in ("summary.json", "run.json"))
    run = RunRecord(folder, _config(read_yaml(path), path), *parts)
    return _checked(run, folder / "summary.json")


def _config(tree, source):
    return former.completed(flatten_checked(tree, source))


def _checked(run, source):
    for key in (f"last_{run.headline}", f"best_{run.headline}"):
        if run.done and not is_measurement(run.summary.get(key)):
            raise UserError(f"{source}: {key}: expected a number in the summary of a finished run")
    return run


def run_folders(root: str | Path) -> list[Path]:
    """The run folders in or below `root`, ordered by path."""
    of_a_run = {"run.json", "summary.json"}  # a folder with neither is not a run folder
    return sorted(folder for folder, names in folders_below(root) if "config.yaml" in names and of_a_run & {*names})


def find_runs(root: str | Path, problems: list[str] | None = None) -> list[RunRecord]:
    """All runs in or below `root`, both run folders and archived studies, ordered by path.

    Raises UserError for the first one that cannot be read; with `problems`, adds a message about each to that list.
    """
    runs = filter(None, (_read(problems, read_run, folder) for folder in run_folders(root)))
    return by_path([*runs, *archived_runs(root, problems)])


def _read(problems, read, *of):
    """The result of a reader. With a list of `problems`, an error is added to it, and the result is None."""
    try:
        return read(*of)
    except UserError as error:
        if problems is None:
            raise
        problems.append(str(error))


def readable_runs(root: str | Path, some: bool = True) -> list[RunRecord]:
    """As `find_runs`, with a line on stderr for each run that cannot be read.

    Raises UserError if none can be read, unless `some` is False.
    """
    problems: list[str] = []
    runs = find_runs(root, problems)
    if problems and not runs and some:
        raise UserError(problems[0])
    for text in problems:
        print(f"left out: {text}", file=sys.stderr)
    return runs


def archived_runs(root: str | Path, problems: list[str] | None = None) -> list[RunRecord]:
    """The runs of the archived studies in or below `root`. `problems`: as of `find_runs`."""
    found: list[RunRecord] = []
    for path in (folder / RUNS for folder, names in folders_below(root) if RUNS in names):
        rows = _read(problems, read_kept, path) or {}
        found += filter(None, (_read(problems, archived_run, path, name, row) for name, row in rows.items()))
    return found


def archived_run(path: Path, name: str, row: Mapping[str, Any]) -> RunRecord:
    """The run of a line of the runs.jsonl at `path`. Raises UserError, naming the run and the key, if it is invalid."""
    source = f"{path}: {name}"
    parts = [checked_record(row[part], source) for part in ("summary", "run")]
    return _checked(RunRecord(path.parent / name, _config(row["config"], source), *parts, kept=row), source)


def by_path(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Records of runs ordered by path."""
    return sorted(runs, key=lambda run: run.path)


def group_runs(runs: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Group runs by configuration and data, each group ordered by seed. A run of an older version, which does not name
    its data or a key that its method has got since, belongs to those that have the key's default.

    Of several runs of one seed, that which was started last is kept; `repeated_runs` has the others.
    """
    return [[seeds[seed][0] for seed in sorted(seeds)] for seeds in _by_seed(runs)]


def repeated_runs(runs: Iterable[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """(run, the run of the same configuration and seed that is counted) of the finished runs that are not counted.

    A copy of a counted run, such as an archived one below the same folder, is not listed.
    """
    pairs = [(other, first) for seeds in _by_seed(run for run in runs if run.done) for first, *rest in seeds.values()
             for other in rest]
    return [(other, first) for other, first in pairs if other.summary != first.summary]


def _by_seed(runs):
    """{seed: its runs, the one that was started last first} of each configuration."""
    same: dict[str, list[RunRecord]] = {}
    for run in runs:
        same.setdefault(run.identity, []).append(run)
    found = []
    splits = (part for each in same.values() for part in _split(each, lambda run: run.unnamed_by_older))
    for part in (part for each in splits for part in _split_by_files(each)):
        seeds: dict[int, list[RunRecord]] = {}
        for run in part:
            seeds.setdefault(run.seed, []).append(run)
        found.append({seed: sorted(each, key=_started, reverse=True) for seed, each in seeds.items()})
    return found


def _started(run):
    return str(run.metadata.get("started") or "")  # ISO format in UTC, whose order is that of time


def split_by_data(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs by the SHA-256 of their data. Those without one join the others if these all have the same data."""
    return _split(runs, lambda run: run.named_data)


def _split(runs, facts):
    """Runs by what `facts(run)` names. A run that does not name one of them joins the others if these agree in it."""
    named = [facts(run) for run in runs]
    if all(each == named[0] for each in named):  # nearly always, and much faster
        return [list(runs)] if runs else []
    common = agreed(named)
    parts: dict[str, list[RunRecord]] = {}
    for run, each in zip(runs, named, strict=True):
        parts.setdefault(json.dumps(sorted((common | each).items()), default=str), []).append(run)
    return list(parts.values())


def _split_by_files(runs):
    """Runs by the user's Python files. Of one name, those of one path (an edited file) or of one content (a file that
    lies elsewhere) are one file; two others are different networks or methods.
    """
    parts: list[tuple[set, list[RunRecord]]] = []
    for run in runs:
        keys = [key for key in NAMED_BY if counts(key, run.config["DISTILLER.TYPE"])]
        marks = {json.dumps([run.config.get(key, BASE[key]) for key in keys], default=str)}
        marks |= {json.dumps(run.own_files, sort_keys=True)} if run.own_files else set()
        joined = [part for part in parts if part[0] & marks]
        parts = [part for part in parts if not part[0] & marks]
        parts.append((marks.union(*(part[0] for part in joined)), [*(one for part in joined for one in part[1]), run]))
    return [part for _, part in parts]


def agreed(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What all that name it agree in; a run of an older version may be taken to agree too."""
    named: dict[str, dict[str, Any]] = {}
    for each in facts:
        for key, value in each.items():
            named.setdefault(key, {})[json.dumps(value, default=str)] = value
    return {key: next(iter(values.values())) for key, values in named.items() if len(values) == 1}


def data_of(group: Iterable[RunRecord]) -> str | None:
    """The SHA-256 of the data of a configuration; None if no run of it names one."""
    return next((run.data_sha256 for run in group if run.data_sha256), None)


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1; NaN for a single value)."""
    values = list(values)
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


@cache
def _kept_metrics(folder):
    return read_kept_metrics(folder / METRICS)
