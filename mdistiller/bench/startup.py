"""The time that a program takes to start, measured with fresh interpreters."""

import dataclasses
import subprocess
import sys
import tempfile

from mdistiller.bench.measure import Contestant, Settings, Table, ratios, spread, take_turns
from mdistiller.data.memory import ImageSource
from mdistiller.places import CHECKOUT

TRAIN = [str(CHECKOUT / "tools" / "train.py")] if CHECKOUT else ["-m", "mdistiller_tools.train"]
TORCH, SETUP = "import torch", "import mdistiller.engine.setup"
DIGITS = ["--cfg", "configs/digits/kd/res20_res8.yaml", "SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]",
          "DISTILLER.TEACHER_CHECKPOINT", "random", "DEVICE", "cpu"]


def bench_startup(settings: Settings, source: ImageSource) -> list[Table]:
    """Imports, a command's help, and a whole run of one epoch of digits, each in interpreters of its own."""
    del source  # nothing is trained on it
    with tempfile.TemporaryDirectory(prefix="bench_startup_") as folder:
        programs = {
            TORCH: ["-c", TORCH],
            SETUP: ["-c", SETUP],
            "train --help": [*TRAIN, "--help"],
            "train, 1 epoch of digits": [*TRAIN, *DIGITS, "LOG.PREFIX", folder, "EXPERIMENT.NAME"],
        }
        contestants = [Contestant(name, _Program(words, folder), lead=0) for name, words in programs.items()]
        seconds = take_turns(contestants, dataclasses.replace(settings, seconds=0.0))  # one start a turn
    table = Table(
        "Start-up: seconds from the start of the interpreter to its end", ["program", "seconds", "of `import torch`"],
        notes=["The run reads its configuration, trains, evaluates, and writes its folder."], seconds=seconds,
    )
    for name, values in seconds.items():
        table.rows.append([name, spread(values), ratios(seconds[TORCH], values)])
    return [table]


class _Program:
    """Each call runs the program once; a run of training gets another name each time."""

    def __init__(self, words, folder):
        self.words, self.folder, self.calls = words, folder, 0

    def __call__(self):
        self.calls += 1
        names = [f"run{self.calls}"] if self.words[-1] == "EXPERIMENT.NAME" else []
        subprocess.run([sys.executable, *self.words, *names], cwd=self.folder, check=True, capture_output=True)
