"""Outputs of the trained networks of a run on its images, and its checkpoints of single epochs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mdistiller.distillers.ea import entropy
from mdistiller.engine.networks import load_teacher
from mdistiller.engine.reopen import open_run
from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.places import RANDOM_TEACHER
from mdistiller.traces import by_epoch


def open_with_teacher(folder: Path, checkpoint: str = "best", opts=(), task: str = "classification"):
    """(cfg, data, distiller in eval mode) of a run, with the weights of its teacher.

    Raises UserError when the teacher's file is not the one used by the run, or when the run had no teacher or another
    task.
    """
    run = open_run(folder, checkpoint, opts)
    cfg, data, distiller = run.cfg, run.data, run.distiller
    if data.info.task != task:
        raise UserError(f"{folder}: trained for {data.info.task}; expected a run for {task}")
    if not distiller.needs_teacher:
        raise UserError(f"{folder}: trained without a teacher; this figure compares student and teacher")
    if cfg.DISTILLER.TEACHER_CHECKPOINT == RANDOM_TEACHER:
        raise UserError(f"{folder}: its teacher had random weights, which are not saved")
    teacher, metadata = load_teacher(cfg, run.task)
    digest = RunFolder(folder).read_json("run.json").get("teacher_sha256")
    if digest not in (None, metadata["teacher_sha256"]):
        raise UserError(f"{metadata['teacher_checkpoint']}: not the teacher that {folder} was trained with (SHA-256)")
    distiller.teacher.load_state_dict(teacher.state_dict())
    return cfg, data, distiller.eval()


@dataclass(frozen=True)
class Outputs:
    """Outputs for the N images of a split: logits (N, C), inputs of the classifier (N, D), labels (N,)."""

    logits: np.ndarray
    feats: np.ndarray
    target: np.ndarray
    temperature: float

    @property
    def correct(self) -> np.ndarray:
        return self.logits.argmax(axis=1) == self.target

    @property
    def entropy(self) -> np.ndarray:
        """Entropies (N,) in nats, at EA.TEMPERATURE."""
        return entropy(torch.from_numpy(self.logits), self.temperature).numpy()


@torch.no_grad()
def outputs_of(network, batches, temperature: float) -> Outputs:
    """The outputs of a network for all images of `batches`."""
    rows = [(network(batch["image"]), batch["target"]) for batch in batches]
    return Outputs(
        torch.cat([output.logits for output, _ in rows]).float().cpu().numpy(),
        torch.cat([output.features["pooled_feat"].flatten(1) for output, _ in rows]).float().cpu().numpy(),
        torch.cat([target for _, target in rows]).cpu().numpy(),
        temperature,
    )


def embed(feats: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """t-SNE of features (N, D) in two dimensions, (N, 2), and the Calinski-Harabasz index of the classes.

    t-SNE has a fixed seed. The index is computed for the points (`embedding`) and for the features (`features`). Raises
    UserError for fewer than 8 images, and for images of one class or each of its own, which have no index.
    """
    if len(feats) < 8:
        raise UserError(f"t-SNE of {len(feats)} images: expected at least 8")
    if not 1 < (classes := len(np.unique(target))) < len(target):
        raise UserError(f"t-SNE of {len(feats)} images of {classes} classes: expected two classes or more, and one of "
                        "them with several images")
    from sklearn.manifold import TSNE  # here: scikit-learn takes seconds, and one figure needs it
    from sklearn.metrics import calinski_harabasz_score

    perplexity = min(30.0, (len(feats) - 1) / 4)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(feats)
    return points, {
        "embedding": float(calinski_harabasz_score(points, target)),
        "features": float(calinski_harabasz_score(feats, target)),
    }


def saved_epochs(folder: Path) -> list[int]:
    """The epochs n with a file epoch_<n>.pth. Raises UserError when there is none."""
    epochs = list(by_epoch(folder, ".pth"))
    if not epochs:
        raise UserError(f"{folder}: no epoch_<n>.pth; train with a lower LOG.SAVE_CHECKPOINT_FREQ")
    return epochs
