"""Run by each rank of a test: a run that is complete ("whole"), stops within its first epoch ("stop"), or resumes."""

import contextlib
from pathlib import Path

import torch

from mdistiller.command import Interrupted
from mdistiller.engine import trainer
from tests.engine.support import run


def main(folder, how):
    trainer.POLL_STEPS = 1
    torch.set_num_threads(1)
    step = trainer.Trainer._step

    def stopping(self, batch):
        step(self, batch)
        if self.step == 4 and self.epoch == 1:
            self.stop_signal = 15

    if how == "stop":
        trainer.Trainer._step = stopping
    with contextlib.suppress(Interrupted):
        run(Path(folder), "KD", "SOLVER.EPOCHS", 2, "SOLVER.BATCH_SIZE", 15, "SOLVER.EMA", 0.9, resume=how == "resume")
