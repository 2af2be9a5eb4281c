"""How far the runs below a folder are: what is running, has stopped, failed or waits, and the time left."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mdistiller.errors import UserError
from mdistiller.files import read_text
from mdistiller.runs.folders import folders_below
from mdistiller.runs.reading import parse_json
from mdistiller.runs.records import RunRecord

PLANS, SWEEP = "plan*.json", ".sweep"  # a sweep's list of its runs is <folder>/.sweep/<project>/plan<number>.json
RUNNING, SILENT, STOPPED, FAILED, WAITING = "running", "silent", "stopped", "failed", "waiting"
ORDER = (FAILED, SILENT, RUNNING, STOPPED, WAITING)
LEAST_SILENCE, EPOCHS_OF_SILENCE = 600, 5  # seconds, and epochs, without a change of a file after which a run is silent


@dataclass(frozen=True)
class Unfinished:
    """A run that is not done. `left`: seconds, None if unknown. `error`: the message of a failed run, or ""."""

    name: str
    state: str
    epoch: int = 0
    epochs: int | None = None
    left: float | None = None
    silence: float | None = None  # seconds since a file of the run changed
    error: str = ""
    run: RunRecord | None = None

    @property
    def percent(self) -> int:
        return round(100 * min(self.epoch / self.epochs, 1)) if self.epochs else 0


@dataclass(frozen=True)
class Progress:
    """Runs that are done, runs that are not, the most urgent first, and the seconds left for all together or None."""

    done: int
    unfinished: Sequence[Unfinished]
    left: float | None

    def count(self, state: str) -> int:
        return sum(one.state == state for one in self.unfinished)

    @property
    def total(self) -> int:
        return self.done + len(self.unfinished)


def progress(root: str | Path, runs: Iterable[RunRecord], now: float | None = None) -> Progress:
    """The progress of the runs below `root`, with those that a sweep there has planned or seen fail."""
    runs, now = list(runs), time.time() if now is None else now
    kept = _sweep_files(root)
    errors, plans = _errors(kept), {path: read_plan(path) for path in kept if path.match(PLANS)}
    there = {_key(run.path.parent, run.path.name) for run in runs}
    found = [_unfinished(run, errors.get(_key(run.path.parent, run.path.name), ""), now)
             for run in runs if not run.done]
    planned = dict.fromkeys(_key(_project(path), name) for path, plan in plans.items() for name in plan["runs"])
    found += [Unfinished(key[1], FAILED if key in errors else WAITING, error=errors.get(key, ""))
              for key in {**planned, **errors} if key not in there]
    found.sort(key=lambda one: (ORDER.index(one.state), one.name))
    together: dict[Path, int] = {}  # jobs of the sweeps of a project
    for path, plan in plans.items():
        together[path.parent] = together.get(path.parent, 0) + plan["jobs"]
    jobs = max([sum(one.state == RUNNING for one in found), *(together.values() if found else ()), 1])
    return Progress(sum(run.done for run in runs), found, _time_left(found, runs, jobs))


def _time_left(found, runs, jobs):
    """Seconds until every running and waiting run has ended, with `jobs` runs at a time."""
    times = [run.summary["wall_seconds"] for run in runs if run.done and run.summary.get("wall_seconds") is not None]
    active = [one for one in found if one.state in (RUNNING, WAITING)]
    whole = fmean(times) if times else None
    left = [whole if one.left is None else one.left for one in active]
    return sum(left) / min(jobs, len(left)) if left and None not in left else None


def _unfinished(run: RunRecord, error: str, now: float) -> Unfinished:
    epochs, epoch = run.epochs, run.summary.get("epoch") or 0
    seconds = run.summary.get("wall_seconds")
    each = seconds / epoch if epoch and seconds else None
    left = each * max(epochs - epoch, 0) if each and epochs else None
    changed = [path.stat().st_mtime for name in ("train.log", "metrics.jsonl", "summary.json", "latest.pth")
               if (path := run.path / name).is_file()]
    silence = max(now - max(changed), 0.0) if changed else None
    status = run.summary.get("status", "running")
    if status == "failed" or error:
        state = FAILED
    elif status != "running":
        state = STOPPED
    else:
        still = silence is None or silence <= max(LEAST_SILENCE, EPOCHS_OF_SILENCE * (each or 0))
        state = RUNNING if still else SILENT
    return Unfinished(run.path.name, state, int(epoch), epochs, left, silence, error, run)


def _key(project, name):
    """A run by the folder of its project, whose path says which machine's copy it is, and its name."""
    return os.path.realpath(project), name


def _project(kept):
    """The folder of the runs for which a sweep keeps a file <folder>/.sweep/<project>/<name>."""
    return kept.parents[2] / kept.parent.name


def _sweep_files(root):
    """The files that sweeps keep, <folder>/.sweep/<project>/<name>, below `root`, sorted."""
    return sorted(folder / name for folder, names in folders_below(root) if folder.parent.name == SWEEP
                  for name in names)


def _errors(kept):
    """Key of a run -> the message with which its last attempt in a sweep failed."""
    found = {}
    for path in (path for path in kept if path.suffix == ".failed"):
        content = _content(path)
        if isinstance(content, dict):
            found[_key(_project(path), path.stem)] = str(content.get("error", ""))
    return found


def read_plan(path: Path) -> dict[str, Any]:
    """The names of `runs` and the number of `jobs` in a sweep's list; those of no run if it cannot be read."""
    content = _content(path)
    content = content if isinstance(content, dict) else {}
    names, jobs = content.get("runs"), content.get("jobs")
    return {"runs": [name for name in names if isinstance(name, str)] if isinstance(names, list) else [],
            "jobs": jobs if isinstance(jobs, int) and 0 < jobs < 10**6 else 1}


def _content(path):
    try:
        return parse_json(read_text(path), path)
    except (UserError, json.JSONDecodeError):  # being written, or damaged: the runs themselves can still be shown
        return None


def duration(seconds: float) -> str:
    """A duration as text: "3 days 4 h", "2 h 5 min" or "40 s"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"
