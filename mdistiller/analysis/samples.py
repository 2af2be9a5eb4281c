"""Accuracy per class and the hardest test images of a run, for the report page: samples.json in the run folder."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mdistiller.analysis.networks import open_with_teacher
from mdistiller.distillers.ea import ea_weight, entropy
from mdistiller.files import write_text

FILE = "samples.json"
MOST_SIDE = 64  # pixels of the longer side of a shown image


def write_samples(folder: str | Path, images: int, checkpoint: str = "latest", opts: Sequence = ()) -> Path:
    """Measure a run of an image classifier on its test set and write <run>/samples.json; returns its path.

    `images` is the number of images that are kept, those with the highest loss of the student. Raises UserError for
    a run of another task or without a teacher.
    """
    cfg, data, distiller = open_with_teacher(Path(folder), checkpoint, opts)
    rows = measure(cfg, distiller, data.eval_batches("test"))
    shown = hardest(rows["loss"], images)
    pictures = _pictures(data, shown)
    hard = [{"index": index, "image": pictures[index], **{key: _plain(values[index]) for key, values in rows.items()}}
            for index in shown]
    content = {
        "checkpoint": checkpoint, "weighted": bool(distiller.weighted),
        "classes": list(data.info.classes or map(str, range(data.info.num_classes))),
        **by_class(rows, data.info.num_classes), "hardest": hard,
    }
    path = Path(folder) / FILE
    write_text(path, json.dumps(content, allow_nan=False) + "\n")
    return path


@torch.inference_mode()
def measure(cfg, distiller, batches) -> dict[str, np.ndarray]:
    """Arrays (N,) of the images in `batches`: labels, predictions, the student's loss, weights and entropies (nats).

    The weight is that of the method; for a method without weights it is what EA gives with its defaults.
    """
    parts = []
    for batch in batches:
        student = distiller.deployed()(batch["image"])[0].float()
        teacher = distiller.teacher(batch["image"])[0].float()
        weight = (distiller.sample_weight(student, teacher) if distiller.weighted
                  else ea_weight(student, teacher, cfg.EA.TEMPERATURE))
        parts.append({
            "target": batch["target"], "student": student.argmax(1), "teacher": teacher.argmax(1), "weight": weight,
            "loss": F.cross_entropy(student, batch["target"], reduction="none"),
            "entropy_student": entropy(student, cfg.EA.TEMPERATURE),
            "entropy_teacher": entropy(teacher, cfg.EA.TEMPERATURE),
        })
    return {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in parts[0]}


def hardest(loss: np.ndarray, number: int) -> list[int]:
    """Positions of the highest values of a loss (N,), from the highest; equal ones in their order."""
    return np.argsort(-loss, kind="stable")[:number].tolist()


def by_class(rows: dict[str, np.ndarray], num_classes: int) -> dict[str, list]:
    """Images per class, and percent of them that student and teacher get right (None without images)."""
    count = np.bincount(rows["target"], minlength=num_classes)

    def accuracy(name):
        right = np.bincount(rows["target"][rows[name] == rows["target"]], minlength=num_classes)
        return [100 * int(hit) / int(of) if of else None for hit, of in zip(right, count, strict=True)]

    return {"count": count.tolist(), "student": accuracy("student"), "teacher": accuracy("teacher")}


def _pictures(data, wanted):
    """{index: PNG in base64} of test images."""
    found = {}
    for batch in data.eval_batches("test"):
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            if index in wanted:
                found[index] = _png(image, data.info)
    return found


def _png(image: Tensor, info) -> str:
    """A normalised image (3, H, W) as PNG in base64, made smaller if it is large."""
    mean, std = (torch.tensor(values, device=image.device).view(-1, 1, 1) for values in (info.mean, info.std))
    pixels = ((image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    picture, out = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()), io.BytesIO()
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    picture.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def _plain(value):
    return round(value.item(), 6)
