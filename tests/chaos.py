"""Kill runs at random moments, resume them, and compare their files bit by bit with those of an uninterrupted run.

python tests/chaos.py --minutes 20 --jobs 2

A run is a process of tools/train.py on digits, forked from this one so that it trains at once. It is killed by the
clock, or by itself: at the n-th step, batch of an evaluation, or access to a file of its folder, writes half done.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ["OMP_NUM_THREADS"] = "1"  # a process with more threads cannot be forked

import numpy as np
import torch
from tqdm import tqdm

from mdistiller.engine.log import progress
from mdistiller.sweep.processes import preload
from tests.chaos_runs import (
    BOTH_SHARE,
    DAMAGE_SHARE,
    EPOCHS,
    LEFT_ALONE,
    METHODS,
    MOST_STOPS,
    NOT_COMPARED,
    PHASES,
    POLL_SECONDS,
    SAVING,
    TERM_SHARE,
    TIMES,
    WEIGHTS,
    Moment,
    Run,
    make_images,
)

# --- comparing ------------------------------------------------------------------------------------------------------


def differences(path: Path, reference: Path) -> list[str]:
    """The differences between two run folders apart from times and paths: the file, and the place in it."""
    one, other = _files(path), _files(reference)
    found = [f"{name}: not there" for name in sorted(other - one)]
    found += [f"{name}: unexpected" for name in sorted(one - other)]
    for name in sorted(one & other):
        try:
            found += [f"{name}: {place}" for place in _unequal(_content(path / name), _content(reference / name))]
        except Exception as error:  # not complete: any error
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def _files(path):
    names = (str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())
    return {name for name in names if not name.startswith((".", "tb/", "entropy_trace/.")) and name not in NOT_COMPARED}


def _content(path):
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def _unequal(one, other, place=""):
    """Where two contents differ in type, shape or any bit."""
    if type(one) is not type(other):
        yield f"{place} {type(one).__name__}, {type(other).__name__} in the reference"
    elif isinstance(one, dict):
        for key in {**one, **other}:
            if key not in TIMES:
                missing = f"{place}.{key}" if (key in one) != (key in other) else ""
                yield from [missing] if missing else _unequal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{place} has {len(one)} entries, {len(other)} in the reference"
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from _unequal(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor | np.ndarray):
        a, b = np.asarray(one), np.asarray(other)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            yield f"{place} {a.dtype} {a.shape}, {b.dtype} {b.shape} in the reference"
        elif a.tobytes() != b.tobytes():
            yield f"{place} ({int((a != b).sum())} of {a.size} numbers)"
    elif repr(one) != repr(other):
        yield f"{place} {one!r}, {other!r} in the reference"


# --- trials ---------------------------------------------------------------------------------------------------------


class Chaos:
    """Trials of some methods; `tally[method]` counts what happened, `found` says what went wrong."""

    def __init__(self, methods: list[str], folder: Path, seed: int = 0, damage_share: float = DAMAGE_SHARE):
        self.methods, self.folder, self.seed, self.damage_share = methods, folder, seed, damage_share
        self.references: dict[str, tuple[Path, dict, float]] = {}
        self.tally = {method: Counter() for method in methods}
        self.phases = Counter()
        self.found: list[str] = []

    def reference(self, method: str) -> Iterator[None]:
        """The uninterrupted run, the points it passed, and the seconds it took."""
        if "{images}" in METHODS[method][1] and not (self.folder / "images").exists():
            make_images(self.folder / "images")
        run, started = Run(method, self.folder / f"{_slug(method)}_reference"), time.monotonic()
        code, watch = yield from run.session(LEFT_ALONE)
        if code:
            raise RuntimeError(f"{method}: the reference ended with {code}: {(run.folder / 'stderr').read_text()}")
        self.references[method] = run.path, watch.counts, time.monotonic() - started

    def trial(self, method: str, number: int) -> Iterator[None]:
        """One run that is stopped a few times and compared with the reference; its folder is kept if they differ."""
        chance, harm = (random.Random(f"{self.seed} {method} {number} {what}") for what in ("stops", "damage"))
        run, tally = Run(method, self.folder / f"{_slug(method)}_{number}"), self.tally[method]
        wrong, history = [], []
        for _ in range(chance.randint(1, MOST_STOPS)):
            moment = self._moment(method, chance)
            code, watch = yield from run.session(moment)
            history.append(f"{moment.phase or 'clock'} {moment.number or round(moment.seconds, 2)}: exit {code}")
            tally["kills"] += code == -signal.SIGKILL
            tally["saving"] += code == -signal.SIGKILL and watch.phase in SAVING
            tally["stops"] += code in (143, -signal.SIGTERM)
            self.phases[watch.phase] += code == -signal.SIGKILL
            wrong += _misbehaviour(run, code, watch, moment)
            if code == 0 or wrong:
                break
            if (run.path / "latest.pth").is_file() and harm.random() < self.damage_share:
                tally["damaged"] += 1
                history.append("damaged")
                wrong += yield from self._damage(run, harm)
        if code and not wrong:
            code, _ = yield from run.session(LEFT_ALONE)
            wrong += [f"the last session ended with {code}"] if code else []
        wrong += [] if wrong else differences(run.path, self.references[method][0])
        tally["trials"] += 1
        tally["left over"] += sum(1 for _ in run.path.glob(".*"))
        tally["differences"] += bool(wrong)
        if wrong:
            self.found.append(f"{method}, trial {number} ({'; '.join(history)}), {run.folder}: {'; '.join(wrong[:8])}")
        else:
            shutil.rmtree(run.folder)

    def _moment(self, method, chance):
        """Within about two epochs from the start of a process, so that kills meet all epochs of a run."""
        _, counts, seconds = self.references[method]
        number = signal.SIGTERM if chance.random() < TERM_SHARE else signal.SIGKILL
        phase = chance.choices(list(WEIGHTS[number]), list(WEIGHTS[number].values()))[0]
        if phase == "clock":
            return Moment(seconds=chance.uniform(0, seconds * 0.75), signal=number)
        points = counts[phase] if phase == "starting" else 2 * counts[phase] // EPOCHS
        return Moment(phase, 1 + int(chance.random() * points), signal=number)

    def _damage(self, run, chance):
        """Damage latest.pth and sometimes previous.pth; a run that cannot continue must say so and keep all files."""
        latest, previous = run.path / "latest.pth", run.path / "previous.pth"
        spoilt = [latest] + ([previous] if previous.is_file() and chance.random() < BOTH_SHARE else [])
        sound = {path: path.read_bytes() for path in spoilt}
        flipped = chance.random() < 0.5
        for path, content in sound.items():
            path.write_bytes(_flipped(content, chance) if flipped else content[: chance.randrange(len(content))])
        if previous.is_file() and previous not in spoilt:
            return []  # the next session continues from there
        before = {path: path.read_bytes() for path in run.path.glob("*.pth")}
        code, _ = yield from run.session(LEFT_ALONE)
        if code == 0 and flipped:
            return []  # the byte may be unused; the comparison shows it
        said, wrong = (run.folder / "stderr").read_text(), []
        if code != 2 or said.count("\n") != 1 or not said.startswith("error: "):
            wrong.append(f"damaged {' and '.join(path.name for path in spoilt)}: exit {code}, {said!r}")
        if any(not path.is_file() or path.read_bytes() != content for path, content in before.items()):
            wrong.append("a refused checkpoint was changed or deleted")
        for path, content in sound.items():
            path.write_bytes(content)
        return wrong


def _misbehaviour(run, code, watch, moment):
    """The errors in how a session ended."""
    term = moment.signal == signal.SIGTERM
    if code in (0, -moment.signal) and not (term and code and watch.phase != "starting"):
        return []
    if code == 143 and term:
        if not run.path.exists() and (run.folder / "stderr").read_text() == "error: terminated\n":
            return []  # before the run had a folder
        status = json.loads((run.path / "summary.json").read_text())["status"]
        return [] if status == "interrupted" else [f"stopped by SIGTERM, summary.json says {status}"]
    return [f"a session ended with {code}: {(run.folder / 'stderr').read_text()[-300:]}"]


def _flipped(content, chance):
    place = chance.randrange(len(content) // 4, 3 * len(content) // 4)
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _slug(method):
    return method.lower().replace(", ", "_")


def work(chaos: Chaos, jobs: int, seconds: float, trials: int | None = None) -> None:
    """References first, then trials of the methods in turn, `jobs` at a time, until the time or `trials` are over."""
    deadline = time.monotonic() + seconds

    def plan():
        number = 0
        while trials is None or number < trials:
            for method in chaos.methods:
                if time.monotonic() > deadline:
                    return
                yield chaos.trial(method, number)
            number += 1

    with progress(None, "chaos", unit=" trials") as bar:
        for tasks in (map(chaos.reference, chaos.methods), plan()):
            for _ in _side_by_side(tasks, jobs):
                bar.n = sum(tally["trials"] for tally in chaos.tally.values())
                bar.set_postfix(kills=chaos.phases.total(), wrong=len(chaos.found))
                time.sleep(POLL_SECONDS)


def _side_by_side(tasks: Iterator[Iterator[None]], jobs: int) -> Iterator[None]:
    """Run the tasks, `jobs` of them at a time."""
    going = []
    try:
        while True:
            while len(going) < jobs and (task := next(tasks, None)):
                going.append(task)
            if not going:
                return
            going = [task for task in going if next(task, task) is None]
            yield
    finally:
        for task in going:
            task.close()


def table(chaos: Chaos) -> str:
    """The summary in Markdown."""
    columns = {"trials": "trials", "kills": "kills", "of them while saving": "saving", "stops by SIGTERM": "stops",
               "damaged checkpoints": "damaged", "differences": "differences"}
    rows = {**chaos.tally, "total": sum(chaos.tally.values(), Counter())}
    lines = [f"| method | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(str(row[key]) for key in columns.values())} |" for name, row in rows.items()]
    kills = ", ".join(f"{chaos.phases[phase]} {phase}" for phase in PHASES)
    left = rows["total"]["left over"]
    return "\n".join([*lines, "", f"Kills while: {kills}. Temporary files that killed runs left: {left}."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="no trial starts later (default: %(default)s)")
    parser.add_argument("--trials", type=int, help="of each method at most")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
                        help=", ".join(f'"{name}"' if " " in name else name for name in METHODS))
    parser.add_argument("--folder", type=Path, help="where runs go (default: a temporary folder)")
    parser.add_argument("--damage", type=float, default=DAMAGE_SHARE, metavar="SHARE",
                        help="of the stops after which the newest checkpoint is damaged (default: %(default)s)")
    args = parser.parse_args()
    tqdm.monitor_interval = 0  # no thread
    torch.set_num_threads(1)
    preload()
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=args.folder)).resolve()
    chaos = Chaos(args.methods, folder, args.seed, args.damage)
    work(chaos, args.jobs, 60 * args.minutes, args.trials)
    print(table(chaos))
    for line in chaos.found:
        print(f"\n{line}")
    if not chaos.found:
        shutil.rmtree(folder)
    return 1 if chaos.found else 0


if __name__ == "__main__":
    sys.exit(main())
