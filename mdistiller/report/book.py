"""The runs of a page: configurations with names and numbers, and each EA variant beside its baseline."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mdistiller.registry import split_ea
from mdistiller.runs.differences import differences
from mdistiller.runs.matching import fit
from mdistiller.runs.records import RunRecord, data_of, group_runs, metric_words
from mdistiller.runs.statistics import Gain, paired_gain

LONGEST_LABEL = 40  # characters of a name in a legend


@dataclass(frozen=True, eq=False)
class Entry:
    """A configuration with its finished runs, one per seed.

    `settings` are those in which it differs from others of its method and networks, such as "KD.TEMPERATURE 8.0".
    """

    number: int  # from 1, as in the anchors of the page
    runs: Sequence[RunRecord]
    settings: str = ""

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def method(self) -> str:
        return method_of(self.first)

    @property
    def alone(self) -> bool:
        """Whether there is no teacher."""
        return self.first.config["DISTILLER.TYPE"] == "NONE"

    @property
    def data(self) -> str | None:
        """The SHA-256 of the data; None for runs of older versions."""
        return data_of(self.runs)

    @property
    def metric(self) -> str:
        return metric_words(self.first.headline)

    @property
    def label(self) -> str:
        return f"{self.method} ({self.settings})" if self.settings else self.method

    @property
    def short(self) -> str:
        """The label with the last part of each key; if that is too long for a legend, its beginning and the number."""
        words = re.sub(r"\b(?:[A-Z]\w*\.)+(\w+) ", lambda match: f"{match[1].lower()} ", self.settings)
        text = f"{self.method} ({words})" if words else self.method
        return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]}... [{self.number}]"

    @property
    def networks(self) -> str:
        config = self.first.config
        return config["DISTILLER.STUDENT"] if self.alone else pair_of(self.first).partition(": ")[2]

    def results(self, epoch: str) -> dict[int, float]:
        """seed -> result of the "last" or "best" epoch."""
        return {run.seed: run.result(epoch) for run in self.runs}


class Book:
    """All runs below a folder. `number` maps the path of a run to its number on the page."""

    def __init__(self, root: Path, runs: Sequence[RunRecord]):
        self.root, self.runs = root, runs
        self.number = {run.path: place for place, run in enumerate(runs, start=1)}
        groups = sorted(group_runs(run for run in runs if run.done), key=_order)
        self.entries = [Entry(place, group, words)
                        for place, (group, words) in enumerate(zip(groups, settings_of(groups), strict=True), start=1)]

    @cached_property
    def entry_of(self) -> dict[Path, Entry]:
        """Path of a run -> its configuration."""
        return {run.path: entry for entry in self.entries for run in entry.runs}

    @cached_property
    def pairs(self) -> dict[int, list[str]]:
        """Number of an entry -> its pairs of networks; a student alone belongs to every pair with this student."""
        taught: dict[tuple, dict[str, None]] = {}
        for entry in self.entries:
            if not entry.alone:
                taught.setdefault(_student(entry.first), {})[pair_of(entry.first)] = None
        own = {entry.number: [pair_of(entry.first)] for entry in self.entries}
        return own | {entry.number: list(taught[_student(entry.first)]) for entry in self.entries
                      if entry.alone and _student(entry.first) in taught}

    @cached_property
    def gains(self) -> list[tuple[Entry, Entry, Gain]]:
        """(EA variant, baseline, gain of the last epoch paired by seed) of each variant with a finished baseline."""
        found = [(entry, self._baseline(entry)) for entry in self.entries]
        return [(entry, baseline, paired_gain(entry.results("last"), baseline.results("last")))
                for entry, baseline in found if baseline is not None]

    def _baseline(self, entry):
        """The configuration that has the plain method, the same teacher and data, and equal settings otherwise.

        Runs of older versions do not name their data; they are compared with those of any data.
        """
        run = entry.first
        plain, weighted = split_ea(run.config["DISTILLER.TYPE"])
        wanted = {**run.config, "DISTILLER.TYPE": plain}
        same = [other for other in self.entries if weighted and other.first.teacher_sha256 == run.teacher_sha256
                and other.first.headline == run.headline and fit(other.first, wanted) == ()]
        equal = [other for other in same if other.data == entry.data]
        return next(iter(equal or [other for other in same if None in (entry.data, other.data)]), None)


def method_of(run: RunRecord) -> str:
    """ "EA-KD", or "student alone"."""
    return "student alone" if run.config["DISTILLER.TYPE"] == "NONE" else run.method


def pair_of(run: RunRecord) -> str:
    """ "digits: resnet20 → resnet8"."""
    config = run.config
    teacher = "" if config["DISTILLER.TYPE"] == "NONE" else f"{config['DISTILLER.TEACHER']} → "
    return f"{config['DATASET.TYPE']}: {teacher}{config['DISTILLER.STUDENT']}"


def settings_of(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """For each configuration, the settings that differ from others with the same method and networks."""
    return differences(groups, [(pair_of(group[0]), group[0].method) for group in groups])


def percent(value) -> str:
    """A result in a table, or a dash."""
    return f"{value:.2f}" if isinstance(value, int | float) and not math.isnan(value) else "–"


def _student(run):
    return tuple(run.config[key] for key in ("DATASET.TYPE", "DISTILLER.STUDENT"))


def _order(group):
    """Sort key that puts each EA variant after its baseline."""
    return *_student(group[0]), *split_ea(group[0].method)
