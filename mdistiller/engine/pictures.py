"""Detections drawn on images of the test set: ground truth, teacher and student side by side."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mdistiller import files
from mdistiller.config import load_cfg
from mdistiller.engine.device import choose_device
from mdistiller.engine.reopen import read_config
from mdistiller.engine.setup import Run, build_run
from mdistiller.errors import UserError

COLOURS = {"ground truth": (0, 160, 60), "teacher": (230, 110, 0), "student": (0, 90, 220)}
GAP, MARGIN = 6, 84  # pixels between images, and to the left of a row for its name
LEAST_SIDE = 256  # pixels of the shorter side of a drawn image; smaller ones are enlarged by a whole factor
PICTURE = "detections.png"
COLOUR_COUNT = 256  # of the palette of a picture


def draw_run(folder: str | Path, number: int, score: float, output: str | Path | None, opts: Sequence = ()) -> Path:
    """The picture of a run's best student, written to `output` or into the run's folder. Returns its path."""
    cfg = read_config(folder, ["DISTILLER.STUDENT_CHECKPOINT", str(Path(folder) / "student_best.pth"), *opts])
    return _draw(cfg, number, score, output or Path(folder) / PICTURE)


def draw_checkpoint(cfg_file: str | Path, checkpoint: str | Path, number: int, score: float, output: str | Path,
                    opts: Sequence = ()) -> Path:
    """The picture of a student's checkpoint, with the teacher of a configuration file. Returns its path."""
    cfg = load_cfg(cfg_file, ["DISTILLER.STUDENT_CHECKPOINT", str(checkpoint), *opts])
    return _draw(cfg, number, score, output)


def _draw(cfg, number, score, output):
    path = Path(output)
    if path.suffix != ".png":
        raise UserError(f"--output: {path} is no PNG file; expected a name that ends in .png")
    run = build_run(cfg, choose_device(cfg.DEVICE))
    if run.data.info.task != "detection":
        raise UserError(f"DATASET.TYPE: {cfg.DATASET.TYPE} has no boxes to draw; expected a detection data set")
    image = picture(run, number, score)
    image = image.quantize(COLOUR_COUNT)  # a third of the size
    files.write_atomically(path, lambda file: image.save(file, format="PNG", optimize=True))
    return path


@torch.inference_mode()
def picture(run: Run, number: int, score: float) -> Image.Image:
    """The first `number` test images: a row each for the ground truth, the teacher (if any) and the student.

    Detections with at least `score` are drawn, with the name of their class.
    """
    batches = list(_first(run.data.eval_batches("test"), number))
    pixels = [image.cpu() for batch in batches for image in batch["image"]][:number]
    truth = [target for batch in batches for target in batch["target"]]
    rows = {"ground truth": [(one["boxes"], one["labels"]) for one in truth]}
    networks = {"teacher": run.distiller.teacher, "student": run.distiller.deployed()}
    for name, network in networks.items():
        if network is not None:
            found = chain.from_iterable(network.eval().detect(batch["image"]) for batch in batches)
            rows[name] = [_above(one, score) for one in found]
    drawn = {name: [_boxes(*pair, COLOURS[name], run.data.info.classes) for pair in zip(pixels, row, strict=False)]
             for name, row in rows.items()}
    return _sheet(drawn)


def _first(batches, number):
    while number > 0 and (batch := next(batches, None)) is not None:
        number -= len(batch["image"])
        yield batch


def _above(found, score):
    kept = found["scores"] >= score
    return found["boxes"][kept], found["labels"][kept]


def _boxes(pixels: Tensor, found: tuple[Tensor, Tensor], colour, classes) -> Image.Image:
    """An image (3, H, W) with boxes (n, 4) and the names of their labels (n,), from 1."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    factor = -(-LEAST_SIDE // min(image.size))
    image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(image)
    for box, label in zip((factor * found[0]).tolist(), found[1].tolist(), strict=True):
        canvas.rectangle(box, outline=colour, width=2)
        text, corner = str(classes[label - 1]), (box[0], max(box[1] - 11, 0))
        canvas.rectangle(canvas.textbbox(corner, text), fill=colour)
        canvas.text(corner, text, fill=(255, 255, 255))
    return image


def _sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of images in columns of equal width, each row with its name."""
    columns = [max(image.width for image in column) for column in zip(*rows.values(), strict=True)]
    heights = [max(image.height for image in row) for row in rows.values()]
    sheet = Image.new("RGB", (MARGIN + sum(columns) + GAP * len(columns), sum(heights) + GAP * (len(rows) - 1)),
                      (255, 255, 255))
    canvas, top = ImageDraw.Draw(sheet), 0
    for (name, row), height in zip(rows.items(), heights, strict=True):
        canvas.text((4, top + height // 2), name, fill=COLOURS[name])
        left = MARGIN
        for image, width in zip(row, columns, strict=True):
            sheet.paste(image, (left, top))
            left += width + GAP
        top += height + GAP
    return sheet
