"""Plan the runs of tables or configs: which runs are needed, which are finished, and the time for the others."""

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from mdistiller import files
from mdistiller.config.common import group_settings
from mdistiller.config.words import nearest
from mdistiller.errors import UserError, counted
from mdistiller.files import read_plain
from mdistiller.places import CHECKOUT
from mdistiller.plugins import edited
from mdistiller.runs.matching import fit
from mdistiller.runs.paper import Cell, Table
from mdistiller.runs.progress import PLANS, duration
from mdistiller.runs.records import RunRecord, read_run
from mdistiller.runs.training import Training

DONE, FAILED, STARTED, LEFT = "done", "failed", "started", "left"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: a training, a seed and a run folder."""

    training: Training
    seed: int

    @cached_property
    def folder(self) -> Path:
        return self.training.prefix / self.training.project / f"{self.training.name}_s{self.seed}"

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def record(self) -> Path:
        """Path without suffix of the lock, the log and the failure message that a sweep keeps for this run."""
        return self.folder.parent.parent / ".sweep" / self.folder.parent.name / self.name

    @cached_property
    def opts(self) -> tuple[str, ...]:
        said, project = self.training.all_overrides, f"EXPERIMENT.PROJECT={self.training.project}"
        place = f"EXPERIMENT.NAME={self.name}", f"EXPERIMENT.SEED={self.seed}"
        return (*said, *([] if project in said else [project]), *place)

    @cached_property
    def command(self) -> list[str]:
        """The arguments of the Python interpreter that start or resume the run."""
        program = [_short(CHECKOUT / "tools" / "train.py")] if CHECKOUT else ["-m", "mdistiller_tools.train"]
        return [*program, "--cfg", _short(self.training.path), "--resume", *self.opts]

    def failure(self) -> str | None:
        """The error of the last attempt of a sweep, None if it did not fail."""
        try:
            return str(json.loads(read_plain(f"{self.record}.failed"))["error"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


@dataclass(frozen=True)
class Group:
    """Runs that train together in one process, which makes each batch and each pass of their teacher once."""

    runs: tuple[PlannedRun, ...]

    @property
    def name(self) -> str:
        return f"{self.runs[0].name} and {len(self.runs) - 1} more"

    @property
    def record(self) -> Path:
        """The same as for a run, for the process of the group; its runs have records of their own."""
        return Path(f"{self.runs[0].record}.together")

    @property
    def orders(self) -> list[dict]:
        """What the process is told of each run, see `mdistiller.engine.together`."""
        return [{"cfg": str(run.training.path), "opts": run.opts, "command": run.command, "record": str(run.record)}
                for run in self.runs]

    @property
    def command(self) -> list[str]:
        """The arguments of the Python interpreter that start or resume the runs; `orders` are in the file."""
        return ["-m", "mdistiller.engine.together", f"{self.record}.json"]


def grouped(runs: Iterable[PlannedRun], most: float = math.inf) -> list[PlannedRun | Group]:
    """The runs, those together that may share data, batches and teacher; a group has at most `most` runs.

    Runs of a group agree in data, seed of the data, batch size, length, teacher and precision (`group_settings`);
    method, student, EA, optimiser and the run's own seed may differ. A run without partners stays alone.
    """
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(group_settings(run.training.settings, run.seed), []).append(run)
    parts = []
    for group in groups.values():
        size = int(min(most, len(group)))
        parts += [tuple(group[first:first + size]) for first in range(0, len(group), size)]
    return [Group(part) if len(part) > 1 else part[0] for part in parts]


def _short(path):
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def choose_cells(
    tables: Iterable[Table], methods: Sequence[str] = (), pairs: Sequence[str] = ()
) -> list[Cell]:
    """The cells selected by both `methods` and `pairs`; an empty list selects all cells.

    A word matches the row, column, method or pair of networks of a cell. Raises UserError for a word that matches no
    cell, and when no cell is matched by both lists.
    """
    cells = [cell for table in tables for cell in table.cells.values()]
    names = {id(cell): {label.lower() for label in _labels(cell)} for cell in cells}
    for words, meant in ((methods, slice(2)), (pairs, slice(2, None))):
        for word in words:
            if not any(word.lower() in labels for labels in names.values()):
                known = sorted({label for cell in cells for label in _labels(cell)[meant]})
                near = nearest(word, known) or known
                raise UserError(f"command line: {word!r} names no cell of the table; nearest: {', '.join(near[:8])}")
    wanted = [{word.lower() for word in words} for words in (methods, pairs) if words]
    chosen = [cell for cell in cells if all(words & names[id(cell)] for words in wanted)]
    if not chosen:
        raise UserError(f"command line: no cell is both of {', '.join(methods)} and of {', '.join(pairs)}")
    return chosen


def _labels(cell):
    """The names of a cell's method, and those of its pair of networks."""
    return cell.row, cell.run.method, cell.column, Path(cell.run.config).stem


def plan_runs(wanted: Iterable[tuple[Training, int]]) -> list[PlannedRun]:
    """The runs of (training, number of seeds) pairs, ordered by seed (from 0), then by training.

    A training that occurs twice is planned once with the larger number of seeds. Raises UserError when two trainings
    would use the same run folder.
    """
    seeds: dict[Training, int] = {}
    for training, number in wanted:
        seeds[training] = max(number, seeds.get(training, 0))
    runs = [PlannedRun(training, seed) for seed in range(max(seeds.values(), default=0))
            for training, number in seeds.items() if seed < number]
    owners: dict[Path, Training] = {}
    for run in runs:
        other = owners.setdefault(run.folder, run.training)
        if other is not run.training:
            raise UserError(f"{run.training.config} and {other.config}: both would train in {run.folder}; give one of "
                            "the files, or its folder, another name")
    return runs


class Progress:
    """Compares planned runs with the run folders that existed when the plan was made."""

    def __init__(self, runs: Iterable[RunRecord]):
        self.finished = [run for run in runs if run.done]
        self._fitting: dict[Training, list[RunRecord]] = {}

    def fitting(self, training: Training) -> list[RunRecord]:
        """Finished runs of exactly this configuration, teacher and data, in any folder and with any name."""
        if training not in self._fitting:
            self._fitting[training] = [run for run in self.finished if fit(run, training.settings) == ()
                                       and training.has_files_of(run)]
        return self._fitting[training]

    def state(self, run: PlannedRun) -> str:
        """DONE, FAILED, STARTED (can be resumed) or LEFT (not started)."""
        if any(other.seed == run.seed for other in self.fitting(run.training)):
            return DONE
        return current_state(run)

    def outdated(self, training: Training) -> list[RunRecord]:
        """Finished runs that used another version of a Python file of the user than there is now."""
        return [run for run in self.fitting(training) if edited(run.own_files, training.own_files)]

    def seconds(self, run: PlannedRun) -> float | None:
        """Estimated remaining seconds of a run from finished runs of its configuration; None without such runs."""
        times = [other.summary["wall_seconds"] for other in self.fitting(run.training)
                 if other.summary.get("wall_seconds") is not None]
        if not times:
            return None
        begun = read_run(run.folder) if self.state(run) == STARTED else None
        gone = (begun.summary.get("epoch") or 0) / begun.epochs if begun and begun.epochs else 0
        return fmean(times) * (1 - gone)


def current_state(run: PlannedRun) -> str:
    """The current state of a run, judged only by its own folder."""
    if not (run.folder / "config.yaml").is_file():
        return FAILED if run.failure() else LEFT
    record = read_run(run.folder)
    if record.done:  # the config may use another name of the method, like MLKD
        settings = {**run.training.settings, "DISTILLER.TYPE": record.config["DISTILLER.TYPE"]}
        same = fit(record, settings) == () and run.training.has_files_of(record)
        return DONE if same else LEFT  # with other settings or another teacher the run will fail
    return FAILED if record.summary.get("status") == "failed" or run.failure() else STARTED


@contextlib.contextmanager
def announced(runs: Iterable[PlannedRun], jobs: int) -> Iterator[None]:
    """A context of a sweep, in which a list of its runs lies beside their folders, for tools/watch.py.

    Each of several sweeps that go on has a list of its own. The lists of sweeps that have ended are deleted.
    """
    names: dict[Path, list[str]] = {}
    for run in runs:
        names.setdefault(run.record.parent, []).append(run.name)
    with contextlib.ExitStack() as held:
        for folder, these in names.items():
            lists = (folder / PLANS.replace("*", str(number)) for number in itertools.count(1))
            path, lock = next((path, lock) for path in lists if (lock := _lock(path)) is not None)
            held.enter_context(lock)
            files.write_text(path, json.dumps({"runs": these, "jobs": jobs}) + "\n")
            for other in {*folder.glob(PLANS)} - {path}:
                if (lock := _lock(other)) is not None:
                    with lock:
                        other.unlink(missing_ok=True)
        yield


def _lock(path):
    """The lock of a list, which its sweep holds as long as it goes on; None if another process has it."""
    return files.lock(Path(f"{path}.lock"), inherited=False)


def summary(runs: Sequence[PlannedRun], states: Mapping, progress: Progress, todo: Sequence, jobs: int) -> str:
    """The plan in a few lines: numbers of finished and remaining runs, estimated time, failed runs."""
    trainings = {run.training for run in runs}
    count = Counter(states.values())
    shown = ((DONE, "done"), (STARTED, "to continue"), (LEFT, "to start"), (FAILED, "failed"))
    told = ", ".join(f"{count[state]} {words}" for state, words in shown if count[state])
    lines = [f"{counted(len(runs), 'run')} of {counted(len(trainings), 'configuration')}: {told}"]
    times = [progress.seconds(run) for run in todo]
    known = [time for time in times if time is not None]
    if known:
        each = "" if len(known) == len(todo) else f" for {len(known)} of the {len(todo)} left"
        estimate = duration(sum(known) / min(jobs, len(known)))
        lines.append(f"time: about {estimate}{each} at --jobs {jobs}, by finished runs of the same configurations")
    if len(known) < len(todo):
        others = f" of the other {len(todo) - len(known)}" if known else ""
        lines.append(f"time{others}: known once a run of each configuration is finished")
    old = sorted({str(run.path) for training in trainings for run in progress.outdated(training)})
    if old:
        lines.append("finished before you changed your Python files, and not trained again (delete their folders for "
                     f"that): {', '.join(old)}")
    if count[FAILED]:
        retried = any(states[run] == FAILED for run in todo)
        lines.append("failed before, tried again now:" if retried else "failed before (again with --retry-failed):")
        lines += [f"  {run.folder}: {run.failure() or 'see its train.log'}" for run in runs if states[run] == FAILED]
    return "\n".join(lines)
