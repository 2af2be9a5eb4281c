"""Runs of a second on digits, in process or as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from mdistiller.config import load_cfg
from mdistiller.engine.setup import train

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8",
         "DISTILLER.TEACHER_CHECKPOINT", "random", "DATASET.TRAIN_FRACTION", 0.5, "SOLVER.BATCH_SIZE", 64,
         "DATASET.TEST.BATCH_SIZE", 512, "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [2], "DEVICE", "cpu"]


def small_cfg(folder, method="EA-KD", *opts):
    """A run of three epochs of three steps that writes below `folder`."""
    return load_cfg(None, [*SMALL, "DISTILLER.TYPE", method, "LOG.PREFIX", str(folder), *opts])


def run(folder, method="EA-KD", *opts, resume=False):
    """Train in this process; returns the run's folder."""
    cfg = small_cfg(folder, method, *opts)
    train(cfg, resume=resume)
    return next(Path(folder).glob("*/*"))


def command(*words, **environment):
    """Run `python <words>` from the repository with few threads; returns the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def train_command(folder, *opts, resume=False):
    """The words of tools/train.py for the small run."""
    flags = ["--resume"] if resume else []
    opts = [*SMALL, "DISTILLER.TYPE", "EA-KD", "LOG.PREFIX", str(folder), *opts]
    return ["tools/train.py", "--cfg", os.devnull, *flags, *map(str, opts)]


def weights(folder, name="latest.pth"):
    return torch.load(Path(folder) / name, weights_only=True)["model"]


def assert_same_weights(one, other, name="latest.pth"):
    one, other = weights(one, name), weights(other, name)
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"differ: {different[:5]}"
