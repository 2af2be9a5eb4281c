"""Many runs: started, watched, stopped and continued. Each is a process of tools/train.py; needs no torch itself.

A task is a planned run: `name`, `command` (the words after the interpreter) and `record` (a path without suffix, where
its lock, log and word of failure go).
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdistiller import files
from mdistiller.command import Interrupted, run_command

DONE, FAILED, REFUSED, STOPPED, ELSEWHERE = "done", "failed", "refused", "stopped", "elsewhere"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS, ELSEWHERE_SECONDS, CLUSTER_SECONDS = 0.05, 2.0, 10.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: DONE, FAILED (kept, retried on request), REFUSED (the user can fix it), STOPPED (continues),
    ELSEWHERE (another sweep finished it, or with an error still holds it)."""

    kind: str
    error: str = ""


class Lock:
    """Held by one sweep for one run, and by the run's process: it outlives a sweep that is killed before its runs."""

    def __init__(self, file: io.FileIO):
        self.file = file

    @classmethod
    def take(cls, record: Path) -> "Lock | None":
        """The lock, or None when another sweep, or a run that one left behind, has it; UserError in a wrong place."""
        file = files.lock(Path(f"{record}.lock"))
        return None if file is None else cls(file)

    def release(self) -> None:
        """Let go of it; a run that still goes keeps it."""
        self.file.close()


def start(task, lock: Lock, device: str | None = None) -> subprocess.Popen:
    """The process of a run, its output in the log beside the lock; `device` is what CUDA_VISIBLE_DEVICES is to be."""
    environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
    with open(f"{task.record}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, *task.command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, pass_fds=[lock.file.fileno()],
        )


def outcome(task, code: int) -> Outcome:
    """What an exit code says; a failure is also written beside the lock, and an earlier one forgotten otherwise."""
    if code in (130, 143) or -code in STOP_SIGNALS:
        return Outcome(STOPPED)
    if code == 0:
        Path(f"{task.record}.failed").unlink(missing_ok=True)
        return Outcome(DONE)
    error = f"{last_line(task)} (exit code {code}; all it said: {task.record}.log)"
    if code == 2:
        return Outcome(REFUSED, error)
    Path(f"{task.record}.failed").write_text(json.dumps({"error": error, "command": task.command}) + "\n")
    return Outcome(FAILED, error)


def last_line(task) -> str:
    """The last line of a run's output, where the reason of a failure stands."""
    try:
        lines = Path(f"{task.record}.log").read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Signals:
    """While in use, a SIGINT, SIGTERM or SIGHUP is noted in `number` and does not end the process.

    One that is ignored stays so, as `nohup` wants it.
    """

    number: int | None = None

    def __enter__(self):
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.number = number


class LocalSweep:
    """Runs tasks as processes of this machine, `jobs` at a time, on the devices in turn (none: as they are).

    `is_done(task)` looks whether another sweep has finished a task since the plan was made; `report(task, outcome)` is
    told how each ended. A task that another sweep holds is looked at again until it has let go of it. `fork`: processes
    are forked from this one, for short runs.
    """

    def __init__(self, tasks: Sequence, jobs: int, devices: Sequence[str], is_done: Callable, report: Callable,
                 fork: bool = False):
        self.devices, self.is_done, self.report, self.fork = devices, is_done, report, fork
        self.waiting, self.elsewhere, self.running = deque(tasks), deque(), {}
        self.slots, self.look_again, self.refusal = deque(range(jobs)), 0.0, None
        if fork:
            preload()

    def run(self) -> None:
        """Until all tasks have ended. Raises Interrupted when a signal stopped it, after the runs have saved all.

        A refusal (exit code 2) with the words of the one before ends the sweep: the rest would be refused too.
        """
        told = set()
        with Signals() as signals:
            while self.running or (not signals.number and (self.waiting or self.elsewhere)):
                if signals.number:
                    for process in self.running.keys() - told:
                        process.send_signal(signal.SIGTERM if signals.number == signal.SIGHUP else signals.number)
                        told.add(process)
                else:
                    self._launch()
                if not self._reap():
                    time.sleep(POLL_SECONDS)
        if signals.number:
            raise Interrupted(signals.number)

    def _launch(self):
        if not self.waiting and self.elsewhere and time.monotonic() > self.look_again:
            self.waiting, self.elsewhere = self.elsewhere, deque()
        while self.waiting and self.slots:
            task = self.waiting.popleft()
            lock = Lock.take(task.record)
            if lock is None:
                self.elsewhere.append(task)
                self.look_again = time.monotonic() + ELSEWHERE_SECONDS
            elif self.is_done(task):
                lock.release()
                self.report(task, Outcome(ELSEWHERE))
            else:
                slot = self.slots.popleft()
                device = self.devices[slot % len(self.devices)] if self.devices else None
                if self.fork:
                    process = ForkedRun(task, lock, device, others=[other for _, _, other in self.running.values()])
                else:
                    process = start(task, lock, device)
                self.running[process] = task, slot, lock

    def _reap(self):
        ended = [process for process in self.running if process.poll() is not None]
        for process in ended:
            task, slot, lock = self.running.pop(process)
            result = outcome(task, process.returncode)
            lock.release()
            self.slots.append(slot)
            self.report(task, result)
            words = last_line(task) if result.kind == REFUSED else None
            if words is not None and words == self.refusal:
                self.waiting.clear()
                self.elsewhere.clear()
            self.refusal = words
        return bool(ended)


class ForkedRun:
    """A run in a process forked from this one, which has loaded PyTorch: what a `Popen` of `start` is, sooner.

    For short runs, whose time would go into starting Python. Only while no thread and no CUDA context exists here.
    """

    def __init__(self, task, lock: Lock, device: str | None = None, others: Iterable[Lock] = ()):
        self.returncode = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for other in others:
                    other.release()
                code = _run_here(task, device)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def preload() -> None:
    """Import what a run needs, once, before `ForkedRun`s are made; each of them then has one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import sklearn.datasets  # noqa: F401  (the digits)

    import mdistiller.engine.setup  # noqa: F401


def _run_here(task, device):
    """What the command of the task does, and its exit code; the output goes to the log."""
    from mdistiller.config import load_cfg
    from mdistiller.engine.setup import train

    with open(f"{task.record}.log", "w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    sys.argv = list(task.command)  # what the run's record shows is the command that repeats it
    try:
        run_command(lambda: train(load_cfg(task.training.path, task.opts), resume=True) and None)
    except SystemExit as end:
        return end.code
    except Exception:  # a bug: its traceback, as the interpreter would print it
        traceback.print_exc()
        sys.stderr.flush()
        return 1


def local_devices() -> list[str]:
    """The CUDA devices that processes may be given, as CUDA_VISIBLE_DEVICES names them; none without CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
