"""Run by each rank of a test: training with frozen batch statistics, which otherwise depend on the local batch."""

from pathlib import Path

import torch
from torch import nn

from mdistiller import distributed
from mdistiller.distillers.base import Distiller
from tests.engine.support import run


def main(folder, *methods):
    original = Distiller.train

    def train(self, mode=True):
        original(self, mode)
        for module in [*self.modules(), *(self.teacher.modules() if self.teacher is not None else ())]:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    Distiller.train = train
    stop, distributed.stop = distributed.stop, lambda: None  # one process group for all runs
    torch.set_num_threads(1)
    opts = ("SOLVER.EPOCHS", 1, "SOLVER.BATCH_SIZE", 15, "DATASET.TRAIN_FRACTION", 0.5)
    opts += ("SOLVER.LR", 0.001)  # at larger rates rounding grows over the steps
    for method in methods:  # 10 steps of 15 images: unequal parts
        run(Path(folder) / method, method, *opts)
    stop()
