"""Start, watch, stop and continue many runs, each a process of tools/train.py. Does not import torch itself.

A task is a planned run with the attributes `name`, `command` (the arguments of the interpreter) and `record` (the path
without suffix of its lock, its log and its failure message), or a group of runs in one process, with their `runs` too.
"""

import dataclasses
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
UNHANDLED = 1  # exit code of Python after an exception
POLL_SECONDS, ELSEWHERE_SECONDS, CLUSTER_SECONDS = 0.05, 2.0, 10.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    DONE; FAILED (retried only on request); REFUSED (an error that the user can fix); STOPPED (can be resumed);
    ELSEWHERE (another sweep has finished it or, if `error` is set, still runs it).
    """

    kind: str
    error: str = ""


def take_lock(record: Path) -> io.TextIOBase | None:
    """A lock on one run until it is closed; None when another sweep or a run that it left running holds it.

    It is held by the sweep and by the run's process, so that it outlives a killed sweep. Raises UserError when the lock
    file cannot be created.
    """
    return files.lock(Path(f"{record}.lock"))


def forget_failure(record: Path) -> None:
    """Delete the message of the last attempt of a run, which is tried again now."""
    Path(f"{record}.failed").unlink(missing_ok=True)


def start(task, *locks: io.TextIOBase, device: str | None = None) -> subprocess.Popen:
    """Start the process of a task that writes to a log file; `device`: its CUDA_VISIBLE_DEVICES (None: inherited)."""
    environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
    if is_group(task):
        files.write_text(f"{task.record}.json", json.dumps(task.orders, indent=1))
        path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**environment, "PYTHONPATH": path}
    with open(f"{task.record}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, *task.command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, pass_fds=[lock.fileno() for lock in locks],
        )


def is_group(task) -> bool:
    """Whether a task is a group of runs."""
    return hasattr(task, "runs")


def ended(task, code: int) -> list[tuple]:
    """(run, outcome) of each run of a task whose process ended with `code`.

    Each run of a group has left a code of its own, unless the process died before.
    """
    if not is_group(task):
        return [(task, outcome(task, code))]
    results = []
    for run in task.runs:
        try:
            results.append((run, outcome(run, int(code_file(run).read_text()))))
        except (OSError, ValueError):
            results.append((run, outcome(run, code or 1, told_by=task)))
        code_file(run).unlink(missing_ok=True)
    return results


def code_file(run) -> Path:
    """Where the process of a group leaves the exit code of a run."""
    return Path(f"{run.record}.code")


def outcome(task, code: int, told_by=None) -> Outcome:
    """The outcome for an exit code. A failure is also written to a file, see `forget_failure`.

    `told_by` is the task whose log has the error, if it is not that of the run.
    """
    if code in (130, 143) or -code in STOP_SIGNALS:
        return Outcome(STOPPED)
    if code == 0:
        return Outcome(DONE)
    told_by = told_by or task
    error = f"{last_line(told_by)} (exit code {code}; full output: {told_by.record}.log)"
    if code == 2:
        return Outcome(REFUSED, error)
    files.write_text(f"{task.record}.failed", json.dumps({"error": error, "command": task.command}) + "\n")
    return Outcome(FAILED, error)


def last_line(task) -> str:
    """The last line of a run's output, which is the error message of a failed run."""
    try:
        lines = Path(f"{task.record}.log").read_text("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Signals:
    """A context in which SIGINT, SIGTERM and SIGHUP do not end the process but are stored in `number`.

    Signals that are already ignored (as with `nohup`) stay ignored.
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
    """Runs tasks as processes of this machine, `jobs` at a time, distributed over `devices` (empty: not assigned).

    `is_done(run)` says whether another sweep has finished a run since the plan was made; `report(run, outcome)` is
    called when a run has ended. A run that another sweep has is checked again, alone, until its lock is free;
    `waits(runs)` is called once, when only such runs are left. With `fork` the processes are forked from this one,
    which is faster for short runs.
    """

    def __init__(self, tasks: Sequence, jobs: int, devices: Sequence[str], is_done: Callable, report: Callable,
                 fork: bool = False, waits: Callable[[Sequence], None] = lambda runs: None):
        self.devices, self.is_done, self.report, self.fork = devices, is_done, report, fork
        self.waits, self.said = waits, False
        self.waiting, self.elsewhere, self.running = deque(tasks), deque(), {}
        self.slots, self.look_again, self.refusal = deque(range(jobs)), 0.0, None
        if fork:
            preload()

    def run(self) -> None:
        """Run until all tasks have ended. After a signal, waits until the runs are saved and raises Interrupted.

        Two consecutive runs that end with exit code 2 and the same message end the sweep: the others would fail too.
        If the sweep itself cannot go on, its runs save their state first.
        """
        asked = set()  # the runs that were told to stop; told again later, they would end without saving
        with Signals() as signals:
            try:
                while self.running or (not signals.number and (self.waiting or self.elsewhere)):
                    if signals.number:
                        for process in self.running.keys() - asked:
                            process.send_signal(signals.number)
                            asked.add(process)
                    else:
                        self._launch()
                    if not self._reap(signals.number):
                        time.sleep(POLL_SECONDS)
            except BaseException:  # such as a full disk, which does not take the message of a failed run
                self._end_runs(asked)
                raise
        if signals.number:
            raise Interrupted(signals.number)

    def _end_runs(self, asked):
        """Stop the runs that go on, which nobody would watch, and wait for their end. Some were `asked` to already."""
        for process in self.running.keys() - asked:
            process.send_signal(signal.SIGTERM)
        while any(process.poll() is None for process in self.running):
            time.sleep(POLL_SECONDS)

    def _launch(self):
        if self.elsewhere and not (self.waiting or self.running or self.said):
            self.said = True
            self.waits(list(self.elsewhere))
        if not self.waiting and self.elsewhere and time.monotonic() > self.look_again:
            self.waiting, self.elsewhere = self.elsewhere, deque()
        while self.waiting and self.slots:
            task = self.waiting.popleft()
            locks = self._locks(task)
            if not locks:
                continue
            if is_group(task):
                task = dataclasses.replace(task, runs=tuple(locks)) if len(locks) > 1 else next(iter(locks))
                for run in locks:
                    code_file(run).unlink(missing_ok=True)  # of a sweep that was killed
            slot, held = self.slots.popleft(), list(locks.values())
            device = self.devices[slot % len(self.devices)] if self.devices else None
            if self.fork:
                others = [lock for _, _, others in self.running.values() for lock in others]
                process = ForkedRun(task, device, others)
            else:
                process = start(task, *held, device=device)
            self.running[process] = task, slot, held

    def _locks(self, task):
        """{run: its lock} of the runs of a task that this sweep is to train now."""
        locks = {}
        for run in task.runs if is_group(task) else (task,):
            lock = take_lock(run.record)
            if lock is None:
                self.elsewhere.append(run)
                self.look_again = time.monotonic() + ELSEWHERE_SECONDS
            elif self.is_done(run):
                lock.close()
                self.report(run, Outcome(ELSEWHERE))
            else:
                forget_failure(run.record)
                locks[run] = lock
        return locks

    def _reap(self, stopping):
        over = [process for process in self.running if process.poll() is not None]
        for process in over:
            task, slot, locks = self.running.pop(process)
            # Ctrl-C reaches the runs too; one whose Python is only starting ends with an exception that nobody handles.
            code = -signal.SIGINT if stopping and process.returncode == UNHANDLED else process.returncode
            results = ended(task, code)
            for lock in locks:
                lock.close()
            self.slots.append(slot)
            for run, result in results:
                self.report(run, result)
                words = last_line(run) if result.kind == REFUSED else None
                if words is not None and words == self.refusal:
                    self.waiting.clear()
                    self.elsewhere.clear()
                self.refusal = words
        return bool(over)


class ForkedRun:
    """A task in a process forked from this one, which has already imported PyTorch; same interface as `Popen`.

    It avoids the start-up time of Python for short runs. This process must have no other thread and no CUDA context.
    The forked process keeps the locks of the task; it gives up `others`.
    """

    def __init__(self, task, device: str | None = None, others: Iterable[io.TextIOBase] = ()):
        self.returncode = None
        sys.stdout.flush()
        sys.stderr.flush()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the run has handlers of its own
        self.pid = os.fork()
        if self.pid == 0:
            code = UNHANDLED
            try:
                for other in others:
                    other.close()
                code = _run_here(task, device, held)
            finally:
                sys.stdout.flush()
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def preload() -> None:
    """Import the modules that a run needs once, before `ForkedRun`s are created; each of them has one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import mdistiller.engine.together  # noqa: F401


def _run_here(task, device, blocked):
    """Execute the command of a task in this process with its output in the log file; returns the exit code.

    Of the signals, only those in `blocked` stay blocked.
    """
    from mdistiller.config import load_cfg
    from mdistiller.engine.setup import train
    from mdistiller.engine.together import Order, train_together

    with open(f"{task.record}.log", "w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    sys.argv = list(task.command)  # run.json stores this command, which repeats the run
    try:
        if is_group(task):
            run_command(lambda: train_together([Order(**order) for order in task.orders]))
        else:
            run_command(lambda: train(load_cfg(task.training.path, task.opts), resume=True) and None)
    except SystemExit as end:
        return end.code
    except Exception:  # a bug: print the traceback, as the interpreter would
        traceback.print_exc()
        sys.stderr.flush()
        return UNHANDLED


def local_devices() -> list[str]:
    """The available CUDA devices as CUDA_VISIBLE_DEVICES names them; empty without CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    lines = listed.stdout.splitlines()  # below "GPU 0: ..." there may be lines of its parts (MIG)
    return [line.partition(":")[0].removeprefix("GPU ") for line in lines if line.startswith("GPU ")]
