"""Runs of tests/chaos.py: the methods, and processes that are killed at a chosen point."""

import builtins
import ctypes
import dataclasses
import io
import itertools
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from mdistiller.engine import run_state, trainer
from mdistiller.tasks import classification
from tests.data.support import write_folders
from tests.ledger_network import Tiny
from tools import train as tool

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS = 4
SHORT = ["SOLVER.EPOCHS", EPOCHS, "SOLVER.LR_DECAY_STAGES", [2, 3], "LOG.SAVE_CHECKPOINT_FREQ", 2,
         "LOG.TENSORBOARD_FREQ", 2, "DATASET.TEST.BATCH_SIZE", 100, "DEVICE", "cpu"]
NETWORK = f"{REPOSITORY}/tests/ledger_network.py:Tiny"
SMALL_FOLDER = ["DATASET.TYPE", "imagefolder", "DATASET.ROOT", "{images}", "DATASET.IMAGE_SIZE", 72,
                "DATASET.NUM_WORKERS", 2, "SOLVER.BATCH_SIZE", 4, "DISTILLER.STUDENT", NETWORK, "DISTILLER.TEACHER",
                NETWORK, "DISTILLER.TEACHER_CHECKPOINT", "{images}/teacher.pth"]
METHODS = {  # row of the table: folder of configs/digits, and what else is set
    "KD": ("kd", []),
    "EA-KD": ("ea_kd", []),
    "EA-DKD": ("ea_dkd", []),
    "EA-MLD": ("ea_mld", []),
    "CTKD": ("ctkd", []),
    "CRD": ("crd", []),
    "FCFD": ("fcfd", ["FCFD.WARMUP", 2]),
    "KD, DOT": ("kd", ["SOLVER.TRAINER", "dot"]),
    "KD, average": ("kd", ["SOLVER.EMA", 0.99]),
    "EA-KD, accumulated": ("ea_kd", ["SOLVER.ACCUMULATE", 2, "SOLVER.BATCH_SIZE", 32]),
    "EA-KD, cache": ("ea_kd", ["TEACHER_CACHE.ENABLED", True]),
    "EA-MLD, replay": ("ea_mld", ["TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.KIND", "replay"]),
    "EA-KD, two processes": ("ea_kd", ["SOLVER.ACCUMULATE", 2, "SOLVER.BATCH_SIZE", 32, "SOLVER.EMA", 0.9,
                                       "LOG.SAVE_CHECKPOINT_STEPS", 5]),
    "EA-KD, workers": ("ea_kd", [*SMALL_FOLDER, "SOLVER.EMA", 0.9, "LOG.SAVE_CHECKPOINT_STEPS", 2]),
    "EA-KD, trace": ("ea_kd", ["LOG.ENTROPY_TRACE", 50]),
}
PROCESSES = {"EA-KD, two processes": 2}  # that train together, as torchrun starts them; the first one is watched
PHASES = ("starting", "training", "evaluating", "saving", "writing")  # writing: inside a write, which is left half done
SAVING = ("saving", "writing")
PHASE_OF = {"_epoch": "training", "_evaluate": "evaluating", "_finish_epoch": "saving", "save": "saving",
            "summarize": "saving"}  # of the functions of the trainer and of the run's state
WEIGHTS = {  # of the draw of a moment; what SIGTERM saves in the midst of an epoch is saved between two steps
    signal.SIGKILL: {"starting": 2, "training": 2, "evaluating": 1, "saving": 4, "writing": 3, "clock": 2},
    signal.SIGTERM: {"starting": 1, "training": 8, "evaluating": 1, "saving": 1, "writing": 1, "clock": 2},
}
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.chmod", "os.truncate", "os.mkdir"}  # of sys.audit
TERM_SHARE, DAMAGE_SHARE, BOTH_SHARE = 0.2, 0.25, 0.2
MOST_STOPS = 6
EVAL_BATCHES = 2  # of the test set, teacher and student alike: evaluations would take most of the time
HANGS_SECONDS, POLL_SECONDS = 600.0, 0.002  # the machine may be busy
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl
TIMES = {"seconds", "images_per_second", "wall_seconds"}
NOT_COMPARED = {"config.yaml", "run.json", "train.log", "previous.pth", "damaged.pth"}  # may differ after a stop


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a run is stopped and how: at point `number` of a phase, or after some seconds."""

    phase: str | None = None
    number: int = 0
    seconds: float = HANGS_SECONDS
    signal: int = signal.SIGKILL


LEFT_ALONE = Moment()


class Watch:
    """What a run's process is doing, in memory that it shares with this one: its phase, and the points it has passed.

    A point is a moment at which the run can be stopped. What is on the disk differs between any two of them only by
    parts of one write, which the point inside that write takes care of.
    """

    def __init__(self):
        self.memory = mmap.mmap(-1, 4 * (1 + len(PHASES)))

    @property
    def phase(self) -> str:
        return PHASES[struct.unpack_from("i", self.memory)[0]]

    @property
    def counts(self) -> dict[str, int]:
        return dict(zip(PHASES, struct.unpack_from(f"{len(PHASES)}i", self.memory, 4), strict=True))

    def enter(self, phase: str) -> None:
        struct.pack_into("i", self.memory, 0, PHASES.index(phase))

    # --- in the process of the run ---------------------------------------------------------------------------------

    def install(self, folder: Path, moment: Moment) -> None:
        """Put points into this process, whose run writes below `folder`; for a process that ends with the run."""
        self.moment = moment
        for name, phase in PHASE_OF.items():
            self._mark(name, phase)
        step, evaluate = trainer.Trainer._step, classification.evaluate
        trainer.Trainer._step = lambda *args: (self.point(), step(*args))[1]
        classification.evaluate = lambda network, batches, device: evaluate(network, self._each(batches), device)

        def ours(path):  # TensorBoard writes in a thread, and what it writes is not compared
            return isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)) and "/tb" not in str(path)

        def open_torn(file, mode="r", *args, **options):
            opened = plain(file, mode, *args, **options)
            return self._tearing(opened) if ours(file) and mode not in ("r", "rb") else opened

        sys.addaudithook(lambda event, args: self.point() if event in FILE_EVENTS and ours(args[0]) else None)
        plain, fsync, pwrite = open, os.fsync, os.pwrite
        builtins.open = io.open = open_torn  # the latter for temporary files and pathlib
        os.fsync = lambda *args: (self.point(), fsync(*args))[1]
        os.pwrite = lambda file, data, offset: self._write(lambda part: pwrite(file, part, offset), data)

    def point(self, half=lambda: None) -> None:
        """Count; at the chosen moment send the signal, with `half` of a write done if it kills."""
        place = 4 + 4 * PHASES.index(self.phase)
        number = struct.unpack_from("i", self.memory, place)[0] + 1
        struct.pack_into("i", self.memory, place, number)
        if (self.phase, number) == (self.moment.phase, self.moment.number):
            if self.moment.signal == signal.SIGKILL:
                half()
            os.kill(os.getpid(), self.moment.signal)

    def _mark(self, name, phase):
        owner = trainer.Trainer if hasattr(trainer.Trainer, name) else run_state.RunState
        function = getattr(owner, name)

        def marked(*args, **options):
            before = self.phase
            self.enter(phase)
            result = function(*args, **options)
            self.enter(before)
            return result

        setattr(owner, name, marked)

    def _each(self, batches):
        for batch in itertools.islice(batches, EVAL_BATCHES):
            self.point()
            yield batch

    def _tearing(self, file):
        write = file.write
        file.write = lambda data: self._write(write, data, file.flush)
        return file

    def _write(self, write, data, flush=lambda: None):
        before = self.phase
        if before != "starting":
            self.enter("writing")
        self.point(lambda: (write(data[: len(data) // 2]), flush()))
        written = write(data)
        self.enter(before)
        return written


class Run:
    """A run of a method below a folder of its own, one process after the other."""

    def __init__(self, method: str, folder: Path):
        self.method, self.folder, self.pid = method, folder, None
        folder.mkdir(parents=True)

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return self.folder / "output" / "chaos" / "run"

    def session(self, moment: Moment) -> Iterator[None]:
        """Start or continue the run until it ends or is stopped; yields while it goes. Returns (exit code, Watch)."""
        watch, started = Watch(), time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(watch, moment)
        try:
            told = False
            while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
                if not told and time.monotonic() - started > moment.seconds:
                    os.kill(self.pid, moment.signal)
                    told = True
                if time.monotonic() - started > HANGS_SECONDS:
                    os.kill(self.pid, signal.SIGKILL)
                yield
            self.pid = None
        finally:
            if self.pid:  # the caller stops
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(ended[1]), watch

    def _child(self, watch, moment):
        code = 1
        try:
            for stream, name, mode in ((1, "stdout", "a"), (2, "stderr", "w")):
                with open(self.folder / name, mode) as file:
                    os.dup2(file.fileno(), stream)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self._start_ranks()
            sys.argv = self._words()
            watch.install(self.folder / "output", moment)
            tool.cli()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


    def _start_ranks(self):
        """Fork the other processes of the run, which end with this one; each is told its rank as by torchrun."""
        size = PROCESSES.get(self.method, 1)
        if size == 1:
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(1, size):
            if os.fork() == 0:
                ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
                os.environ.update(_rank(rank, size, port))
                with open(self.folder / f"stderr_{rank}", "w") as file:
                    os.dup2(file.fileno(), 2)
                self._train_as(rank)
        os.environ.update(_rank(0, size, port))

    def _train_as(self, rank):
        """Run a process of another rank to its end."""
        try:
            sys.argv = self._words()
            tool.cli()
        finally:
            os._exit(rank)

    def _words(self):
        config, opts = METHODS[self.method]
        opts = [*SHORT, *(str(word).format(images=self.folder.parent / "images") for word in opts),
                "LOG.PREFIX", self.folder / "output", "EXPERIMENT.PROJECT", "chaos", "EXPERIMENT.NAME", "run",
                "TEACHER_CACHE.DIR", self.folder / "output" / "cache"]
        return ["tools/train.py", "--cfg", f"{REPOSITORY}/configs/digits/{config}/res20_res8.yaml", "--resume",
                *map(str, opts)]


def _rank(rank, size, port):
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}


def make_images(folder: Path) -> None:
    """A few images in class folders, and the weights of a teacher, for the methods that read them by workers."""
    write_folders(folder)
    torch.manual_seed(0)
    torch.save({"model": Tiny(3).state_dict()}, folder / "teacher.pth")
