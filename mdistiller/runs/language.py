"""The paper's tables of language models: their rows, how these are trained, and the scores of their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from mdistiller.config.files import read_yaml
from mdistiller.config.stated import BASE
from mdistiller.config.words import shown
from mdistiller.errors import counted
from mdistiller.runs.matching import best_group
from mdistiller.runs.paper import DATA, load_tables
from mdistiller.runs.records import RunRecord, mean_and_std
from mdistiller.runs.training import Training

SPEC = read_yaml(DATA / "language.yaml")
AVERAGE = "Avg"  # the column of the means over all sets
TEACHER = "teacher"  # name of the teacher's answers in a run folder
SMOKE_MARK = f"LOG.PREFIX={SPEC['smoke']['prefix']}"  # the first override of a smoke run


@dataclass(frozen=True)
class Score:
    """Rouge-L of one row on one set in percent: the mean over training seeds of the means over decoding seeds."""

    mean: float
    training: float  # standard deviation over training seeds; NaN for a single seed
    decoding: float | None  # standard deviation over decoding seeds, averaged over runs; None for an average of sets
    seeds: int  # number of training seeds


@dataclass(frozen=True)
class Row:
    """A row of a table, or a control experiment, with its training and its finished runs."""

    label: str
    training: Training
    baseline: str | None  # label of the baseline row that it is compared with
    printed: Mapping[str, float]  # the paper's numbers by column; empty for a control
    runs: tuple[RunRecord, ...]

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Scores by column, for the sets that were answered as the table states."""
        if self.training.extra and self.training.extra[0] == SMOKE_MARK:
            found = {SPEC["smoke"]["column"]: [(run.result("best"), None) for run in self.runs]}
            return {column: _score(values) for column, values in found.items() if values}
        return _by_column([scores_of(run) for run in self.runs])

    @property
    def left_out(self) -> list[str]:
        """One line for each set that a run did not answer as the table states, whose score is in no cell."""
        return [f"{self.label}, {run.path}, {mark}{name}: {words}" for run in self.runs
                for who, mark in (("best", ""), (TEACHER, "the teacher's "))
                for name, found in _scored(run, who).items() if (words := _departure(name, found))]


def teachers(rows: Sequence[Row]) -> list[dict[str, Score]]:
    """Scores by column of each teacher of the rows' runs whose answers were scored.

    The answers of a network do not depend on the run in whose folder they are.
    """
    found: dict = {}
    for run in (run for row in rows for run in row.runs):
        if scores := scores_of(run, TEACHER):
            found.setdefault(run.metadata.get("teacher_sha256"), {}).update(scores)
    return [_by_column([scores]) for scores in found.values()]


def scores_of(run: RunRecord, who: str = "best") -> dict[str, tuple[float, float | None]]:
    """{set: (Rouge-L, its deviation over decoding seeds)} of the answers of the best checkpoint, or of the teacher.

    Sets of which another number of examples was answered than the table states, or with another number of decoding
    seeds, are left out.
    """
    return {name: (found["rouge_l"], found.get("rouge_l_std")) for name, found in _scored(run, who).items()
            if not _departure(name, found)}


def unanswered(run: RunRecord, who: str = "best") -> dict[str, Path]:
    """{set: its file} of the sets that a network has not answered, or not as the tables state."""
    root, there = Path(run.config.get("DATASET.ROOT", BASE["DATASET.ROOT"])), scores_of(run, who)
    return {name: root / file for name, file in SPEC["files"].items() if name not in there}


def _scored(run, who):
    """{set: scores} of a network's answers to the sets of the tables."""
    scores = {name: rules.get(SPEC["rule"]) for name, rules in run.answers.get(who, {}).items()}
    return {name: found for name, found in scores.items() if found and name in SPEC["examples"]}


def _departure(name, found):
    """What differs from the table's evaluation, as words; empty if nothing does."""
    examples, seeds, wanted = found.get("examples"), found.get("seeds"), SPEC["examples"][name]
    number = len(seeds) if isinstance(seeds, list) else 0
    if (examples, number) == (wanted, SPEC["decodings"]):
        return ""
    found = f"{shown(examples)} examples and {counted(number, 'decoding seed')}"
    return f"{found}, expected {wanted} and {SPEC['decodings']}"


def _by_column(each):
    """Column -> score, of the scores by set of several runs; the average is over runs with scores of all sets."""
    sets = SPEC["sets"]
    found = {column: [one[name] for one in each if name in one] for column, name in sets.items()}
    found[AVERAGE] = [(fmean(one[name][0] for name in sets.values()), None) for one in each
                      if set(sets.values()) <= one.keys()]
    return {column: _score(values) for column, values in found.items() if values}


def _score(values):
    mean, deviation = mean_and_std([value for value, _ in values])
    decoding = [spread for _, spread in values if spread is not None]
    return Score(mean, deviation, fmean(decoding) if decoding else None, len(values))


def is_language(table: str) -> bool:
    """Whether a table is one of language models."""
    return table.upper() in SPEC["tables"]


def _specs(table):
    return {**SPEC["tables"][table.upper()], **SPEC["controls"]}


def trainings(table: str, extra: Sequence[str] = (), smoke: bool = False) -> dict[str, Training]:
    """The trainings of the rows and the controls of a table, by label."""
    found = {}
    for label, spec in _specs(table).items():
        config, own = (SPEC["smoke"] if smoke else SPEC)["config"].format(method=spec["method"]), spec.get("set", ())
        if smoke:
            found[label] = Training(config, (*own, *SPEC["smoke"]["overrides"]), (SMOKE_MARK, *extra))
        else:
            found[label] = Training(config, tuple(own), tuple(extra))
    return found


def rows(table: str, runs: Sequence[RunRecord], extra: Sequence[str] = (), smoke: bool = False) -> list[Row]:
    """The rows and the controls of a table with their finished runs."""
    printed = load_tables()[table]
    found = []
    for label, training in trainings(table, extra, smoke).items():
        numbers = {column: printed.cells[label, column].printed for column in printed.columns
                   if (label, column) in printed.cells and not smoke}
        group, _ = best_group(runs, training.settings)
        found.append(Row(label, training, _specs(table)[label].get("baseline"), numbers, tuple(group)))
    return found
