"""Run folders, read and grouped: runs of one configuration over seeds. Reads files only; needs no torch."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mdistiller.config.files import read_yaml

# What may differ between runs of one configuration: who ran it, where, under which name, and the seed.
_NOT_IDENTITY = {
    "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.SEED", "DATASET.ROOT", "DATASET.DOWNLOAD",
    "DATASET.NUM_WORKERS", "DATASET.TEST.BATCH_SIZE", "DISTILLER.TEACHER_CHECKPOINT", "DEVICE",
}


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
    def method(self) -> str:
        return self.config["DISTILLER.TYPE"] + ("+LS" if self.config.get("DISTILLER.LS") else "")

    @property
    def identity(self) -> str:
        """Equal for runs that differ in nothing but the seed; the teacher counts by its weights, not its path."""
        kept = {k: v for k, v in self.config.items() if k not in _NOT_IDENTITY and not k.startswith("LOG.")}
        if self.config["DISTILLER.TYPE"] == "NONE":
            kept.pop("DISTILLER.TEACHER", None)
        return json.dumps([sorted(kept.items()), self.facts.get("teacher_sha256")], default=str)


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def read_run(folder: Path) -> RunRecord:
    """The record of one run folder; what is missing or not whole is empty."""
    return RunRecord(
        folder, flatten(read_yaml(folder / "config.yaml")), _json(folder / "summary.json"), _json(folder / "run.json")
    )


def find_runs(root: str | Path) -> list[RunRecord]:
    """All run folders at or below `root`, ordered by path."""
    folders = [path.parent for path in sorted(Path(root).rglob("config.yaml"))]
    return [read_run(folder) for folder in folders if (folder / "run.json").is_file()]


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
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
