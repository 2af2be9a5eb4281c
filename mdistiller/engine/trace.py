"""Entropies and losses of a fixed subset of the training images after each epoch, for figures (LOG.ENTROPY_TRACE)."""

from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from mdistiller import files
from mdistiller.data.splits import ranks_in_class
from mdistiller.distillers import plain_kd_loss
from mdistiller.distillers.ea import entropy
from mdistiller.errors import UserError
from mdistiller.precision import autocast, teacher_amp
from mdistiller.traces import FOLDER


def balanced_subset(labels: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of `number` samples, balanced over the classes and equal in every run; `labels` is (N,)."""
    order = np.lexsort((labels, ranks_in_class(labels)))  # the first of every class, then the second, ...
    return np.sort(order[:number])


class EntropyTrace:
    """Writes <run>/entropy_trace/epoch_<n>.npz; an epoch that is repeated after a stop overwrites its file.

    Arrays (N,), float32, of LOG.ENTROPY_TRACE training images without augmentation, networks in eval mode:
    `entropy_student`, `entropy_teacher` (nats, at EA.TEMPERATURE), `kd_loss` (nats, see `plain_kd_loss`) and
    `weight` (the method's sample weight; ones without EA); also `index` and `target`. Without a teacher, or with
    LOG.ENTROPY_TRACE 0, nothing is written. Raises UserError for a task whose samples are not images.
    """

    def __init__(self, cfg: CfgNode, data, distiller, folder: Path):
        self.cfg, self.data, self.distiller, self.folder = cfg, data, distiller, folder
        number = cfg.LOG.ENTROPY_TRACE if distiller.needs_teacher else 0
        if number and distiller.task.unit != "images":
            raise UserError(f"LOG.ENTROPY_TRACE: images are traced, {distiller.task.unit} are not; expected 0, found "
                            f"{number}")
        self.index = balanced_subset(data.labels, number) if number else None

    def write(self, epoch: int) -> None:
        """Measure the current networks, which are in eval mode, and write the file of this epoch."""
        if self.index is None:
            return
        rows = measure(self.cfg, self.distiller, self.data.plain_batches(self.index))
        arrays = {"index": self.index, "target": self.data.labels[self.index], **rows}
        path = self.folder / FOLDER / f"epoch_{epoch}.npz"
        files.write_atomically(path, lambda file: np.savez(file, **arrays))


@torch.no_grad()
def measure(cfg: CfgNode, distiller, batches) -> dict[str, np.ndarray]:
    """The measured arrays (N,) of `EntropyTrace` for the samples of `batches`; the distiller is in eval mode."""
    rows = []
    for batch in batches:
        image = batch["image"]
        with autocast(image.device, cfg.SOLVER.AMP):
            student = distiller(image)
        with autocast(image.device, teacher_amp(cfg)):
            teacher = distiller.teacher(image).logits
        student, teacher = student.float(), teacher.float()
        row = {
            "entropy_student": entropy(student, cfg.EA.TEMPERATURE),
            "entropy_teacher": entropy(teacher, cfg.EA.TEMPERATURE),
            "kd_loss": plain_kd_loss(cfg, student, teacher),
            "weight": distiller.sample_weight(student, teacher),
        }
        rows.append(torch.stack(list(row.values())))
    return dict(zip(row, torch.cat(rows, dim=1).cpu().numpy(), strict=True))
