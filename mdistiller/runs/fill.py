"""Fill a table of the paper from run folders: runs and protocol of each cell, means, differences and gains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from mdistiller.config.stated import BASE
from mdistiller.runs.matching import TRIALS, best_group, equal, fit, other_content
from mdistiller.runs.paper import Cell, Table
from mdistiller.runs.records import RunRecord, mean_and_std, repeated_runs
from mdistiller.runs.statistics import Gain, holm, paired_gain
from mdistiller.runs.training import Training

EPOCHS = ("last", "best")
_PROTOCOL = {  # key -> its text in the description of a protocol
    "SOLVER.EPOCHS": "{} epochs", "SOLVER.BATCH_SIZE": "batches of {}", "DATASET.TRAIN_FRACTION": "{} of the images",
    "DATASET.VAL_FRACTION": "{} of them for validation", "SOLVER.MAX_ITER": "{} updates",
}
_PER_METHOD = ("DISTILLER.", "EA.", "DATASET.TYPE")  # settings that may differ within one protocol
_ALWAYS_SHOWN = ("SOLVER.EPOCHS", "SOLVER.BATCH_SIZE", "SOLVER.MAX_ITER")


@dataclass(frozen=True)
class Filled:
    """A cell with the finished runs of the best fitting configuration; without runs the cell is missing."""

    cell: Cell
    training: Training
    runs: tuple[RunRecord, ...]  # one per seed, ordered by seed
    others: int  # number of other configurations that fit and are not shown
    differences: tuple[str, ...]  # from the paper's protocol, "KEY value (not value)"
    protocol: tuple[tuple[str, Any], ...]  # (key, value) pairs that must be equal for cells to be ranked together

    def by_seed(self, epoch: str) -> dict[int, float]:
        """seed -> result of the "last" or "best" epoch: the metric of the column, or else the headline metric."""
        values = {run.seed: run.result(epoch, self.cell.metric) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean_and_std(self, epoch: str) -> tuple[float, float]:
        values = self.by_seed(epoch).values()
        return mean_and_std(values) if values else (math.nan, math.nan)

    def difference(self, epoch: str) -> float:
        """Mean minus the paper's number; NaN if the protocol differs from the paper's."""
        return math.nan if self.differences else self.mean_and_std(epoch)[0] - self.cell.printed

    def deviation(self, epoch: str) -> float:
        """Standard deviation over the seeds, or the paper's if there is only one seed."""
        own = self.mean_and_std(epoch)[1]
        return self.cell.std if math.isnan(own) and self.cell.std is not None else own

    def within(self, epoch: str) -> bool | None:
        """Whether the paper's number lies within two standard deviations of the mean; None if it cannot be decided."""
        difference, deviation = self.difference(epoch), self.deviation(epoch)
        if math.isnan(difference) or math.isnan(deviation):
            return None
        return abs(difference) <= 2 * deviation + 1e-9  # the limit itself counts as within

    @property
    def protocol_text(self) -> str:
        values = dict(self.protocol)
        views = values.pop("views")
        if values["SOLVER.MAX_ITER"]:
            del values["SOLVER.EPOCHS"]  # has no effect on a run whose length is counted in updates
        told = [
            _PROTOCOL.get(key, key + " {}").format(value) for key, value in values.items()
            if (key in _ALWAYS_SHOWN and value) or value != BASE.get(key)
        ]
        return ", ".join([told[0], f"{views} view{'s' if views > 1 else ''}", *told[1:]])


@dataclass(frozen=True)
class FilledTable:
    """A table with its filled cells by (row, column)."""

    table: Table
    cells: Mapping[tuple[str, str], Filled]
    epoch: str  # the epoch of the headline numbers: "last" or "best"
    smoke: bool = False
    unfinished: int = 0  # number of unfinished runs, which are not used
    repeated: tuple[RunRecord, ...] = ()  # runs of its cells that are not used, since others have their seeds

    @property
    def by_columns(self) -> bool:
        """Whether methods are compared within a column (a pair of networks); otherwise within a row."""
        return any("student" in attributes for attributes in self.table.columns.values())

    @cached_property
    def groups(self) -> dict[str, dict[str, Filled]]:
        """Pair of networks -> label of what is compared (method, weight, temperature) -> cell."""
        groups: dict[str, dict[str, Filled]] = {}
        for (row, column), filled in self.cells.items():
            group, line = (column, row) if self.by_columns else (row, column)
            groups.setdefault(group, {})[line] = filled
        return groups

    def baseline(self, filled: Filled) -> Filled | None:
        """The cell of the baseline method that this cell is compared with."""
        return self.cells[filled.cell.baseline] if filled.cell.baseline else None

    def gain(self, filled: Filled) -> Gain | None:
        """The gain over the baseline in the headline metric; None without a baseline or without runs of both.

        Also None when the protocols differ, unless the paper itself compares these two protocols.
        """
        baseline = self.baseline(filled)
        if baseline is None or not (filled.by_seed(self.epoch) and baseline.by_seed(self.epoch)):
            return None
        if self.across(filled) and not self.smoke and (filled.differences or baseline.differences):
            return None
        return paired_gain(filled.by_seed(self.epoch), baseline.by_seed(self.epoch))

    @cached_property
    def corrected_p(self) -> dict[tuple[str, str], float]:
        """Cell with a tested gain -> its p-value corrected for the number of tests in the table (Holm)."""
        gains = {key: gain for key, cell in self.cells.items() if (gain := self.gain(cell)) is not None}
        return dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))

    def printed_gain(self, filled: Filled) -> float | None:
        baseline = self.baseline(filled)
        return None if baseline is None else filled.cell.printed - baseline.cell.printed

    def across(self, filled: Filled) -> bool:
        """Whether a cell and its baseline were trained with different protocols."""
        baseline = self.baseline(filled)
        return baseline is not None and baseline.protocol != filled.protocol

    def unlike_baseline(self, filled: Filled) -> tuple[str, ...]:
        """The published settings, other than the weights, in which a cell differs from its baseline."""
        baseline = self.baseline(filled)
        if baseline is None:
            return ()
        own, other = filled.cell.run.settings, baseline.cell.run.settings
        return tuple(f"{key} {own.get(key)} (baseline {other.get(key)})" for key in sorted({*own, *other})
                     if own.get(key) != other.get(key) and key != "DISTILLER.TYPE" and not key.startswith("EA."))

    @cached_property
    def ranked_first(self) -> set[tuple[str, str]]:
        """(row, column) of the cells with the highest mean among two or more cells of the same pair and protocol."""
        first = set()
        for group in self.groups.values():
            means: dict[tuple, dict[tuple[str, str], float]] = {}
            for filled in group.values():
                mean = filled.mean_and_std(self.epoch)[0]
                if not math.isnan(mean):
                    means.setdefault(filled.protocol, {})[filled.cell.row, filled.cell.column] = mean
            for same in means.values():
                if len(same) > 1:
                    first |= {key for key, mean in same.items() if mean == max(same.values())}
        return first

    def average_gains(self) -> "dict[str, AverageGain]":
        """Label of a method -> its average gain over the pairs; also "overall" and pairs, if the paper prints them.

        Gains in different metrics (AP, AP50, AP75) have no average.
        """
        lines: dict[str, list[Filled]] = {}
        for group in self.groups.values():
            for line, filled in group.items():
                if filled.cell.baseline:
                    lines.setdefault(line, []).append(filled)
        if "overall" in self.table.average_gain:
            lines["overall"] = [filled for line in lines.values() for filled in line]
        lines |= {pair: [filled for filled in group.values() if filled.cell.baseline]
                  for pair, group in self.groups.items() if pair in self.table.average_gain}
        return {line: self._average(line, cells) for line, cells in lines.items()
                if len(cells) > 1 and len({filled.cell.metric for filled in cells}) == 1}

    def _average(self, line, cells):
        measured = [gain.mean for filled in cells if (gain := self.gain(filled)) is not None]
        return AverageGain(
            mean=fmean(measured) if measured else math.nan,
            cells=len(measured),
            across=any(self.across(filled) and self.gain(filled) for filled in cells),
            of=len(cells),
            printed=self.table.average_gain.get(line),
            recomputed=fmean(self.printed_gain(filled) for filled in cells),
        )


@dataclass(frozen=True)
class AverageGain:
    """The mean gain over the cells that have one."""

    mean: float
    cells: int  # number of cells with a gain
    across: bool  # in some of them the protocols of the cell and of its baseline differ
    of: int  # number of all cells
    printed: float | None  # in the paper
    recomputed: float  # from the numbers of the paper's cells


def may_be_filled(table: Table, runs: Sequence[RunRecord]) -> bool:
    """False if no run has the method, student and data of a cell; quick, since it reads no config file."""
    there = {_rough(run.config) for run in runs}
    return any(_rough(cell.run.settings) in there for cell in table.cells.values())


def _rough(settings):
    data = settings["DATASET.TYPE"]
    return settings["DISTILLER.TYPE"].upper(), settings["DISTILLER.STUDENT"], TRIALS.get(data, data)


def fill(
    table: Table, runs: Sequence[RunRecord], epoch: str = "last", extra: tuple[str, ...] = (), smoke: bool = False
) -> FilledTable:
    """Fill the cells of a table with the runs of their configurations; `extra` overrides apply to all cells.

    A cell gets the runs of its own protocol, or else those of the most similar protocol with a list of the differences.
    """
    cells = {}
    for key, cell in table.cells.items():
        training = Training.of_cell(cell, extra, smoke)
        group, others = best_group(runs, training.settings)
        cells[key] = Filled(cell, training, tuple(group), others, *_protocol(cell, training, group))
    used = {run.path for cell in cells.values() for run in cell.runs}
    repeated = tuple(run for run, counted in repeated_runs(runs) if counted.path in used)
    return FilledTable(table, cells, epoch, smoke, sum(not run.done for run in runs), repeated)


def _protocol(cell, training, group):
    """(differences from the paper's protocol, the protocol) of the runs, or of the planned runs if there are none."""
    paper = {**BASE, **training.published}
    here = {**BASE, **(group[0].config if group else training.settings)}
    departed = set(fit(group[0], training.settings)) if group else set()
    other = sorted(key for key in departed | training.changed if not equal(here.get(key), paper.get(key)))
    told = tuple(f"{key} {here.get(key)} (not {paper.get(key)})" for key in other)
    content = other_content(group)
    told += tuple(f"{found} {key} (not {expected})" for key, (found, expected) in content.items())
    if training.smoke:
        told, other = ("smoke settings",), []
    shared = [*_PROTOCOL, *(key for key in other if key in BASE and not key.startswith(_PER_METHOD))]
    shared += ["DATASET.TYPE"] if here["DATASET.TYPE"] in TRIALS else []
    settings = tuple((key, _hashable(here[key])) for key in dict.fromkeys(shared))
    return told, (("views", cell.run.views), *settings, *((key, found) for key, (found, _) in content.items()))


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value
