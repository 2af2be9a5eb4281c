"""Short runs on digits, in this process or as commands."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdistiller.command import Interrupted
from mdistiller.config import load_cfg
from mdistiller.data import digits
from mdistiller.engine.setup import train
from mdistiller.engine.trainer import Trainer
from tests.forked import run_tool

WHOLE = digits.read_digits
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8",
         "DISTILLER.TEACHER_CHECKPOINT", "random", "DATASET.TRAIN_FRACTION", 0.5, "SOLVER.BATCH_SIZE", 64,
         "DATASET.TEST.BATCH_SIZE", 512, "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [2], "DEVICE", "cpu"]


def small_cfg(folder, method="EA-KD", *opts):
    """A run of three epochs of three steps that writes below `folder`."""
    return load_cfg(None, [*SMALL, "DISTILLER.TYPE", method, "LOG.PREFIX", str(folder), *opts])


@contextlib.contextmanager
def few_test_images():
    """The digits with only every eighth test image; a small run would spend most of its time on evaluation."""

    def few():
        source = WHOLE()
        kept = {"test_images": source.test_images[::8], "test_labels": source.test_labels[::8]}
        return dataclasses.replace(source, **kept)

    before, digits.read_digits = digits.read_digits, few
    try:
        yield
    finally:
        digits.read_digits = before


def run(folder, method="EA-KD", *opts, resume=False):
    """Train in this process, with `few_test_images`; returns the run's folder."""
    cfg = small_cfg(folder, method, *opts)
    with few_test_images():
        train(cfg, resume=resume)
    return next(Path(folder).glob("*/*"))


@contextlib.contextmanager
def stopped_after(epoch, step):
    """A run within is asked to stop after `step` steps of an epoch, and must end there, resumable."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        original = Trainer._step

        def stopping(self, batch):
            original(self, batch)
            if (self.epoch, self.step) == (epoch, step):
                self.stop(15)

        patch.setattr(Trainer, "_step", stopping)
        yield


def command(*words):
    """Run `python tools/<tool>.py <words>` from the repository in a forked process, with `few_test_images`; returns the
    finished process."""
    tool = Path(words[0])
    assert tool.parts[0] == "tools", tool
    with few_test_images():
        return run_tool(tool.stem, words[1:], REPOSITORY)


def typed(*words, **environment):
    """Run `python <words>` as a user types it, in an interpreter of its own, which takes seconds to start."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def train_command(folder, *opts, resume=False):
    """The words of tools/train.py for the small run."""
    flags = ["--resume"] if resume else []
    opts = [*SMALL, "DISTILLER.TYPE", "EA-KD", "LOG.PREFIX", str(folder), *opts]
    return ["tools/train.py", "--cfg", os.devnull, *flags, *map(str, opts)]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, name="latest.pth"):
    return torch.load(Path(folder) / name, weights_only=True)["model"]


def assert_same_weights(one, other, name="latest.pth"):
    one, other = weights(one, name), weights(other, name)
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"differ: {different[:5]}"
