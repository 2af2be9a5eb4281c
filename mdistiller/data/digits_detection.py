"""Handwritten digits on cluttered canvases, a data set for detection without download that is quick to learn."""

import hashlib
from functools import cache

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.data.boxes import Annotation
from mdistiller.data.build import DATASETS
from mdistiller.data.detection import BoxSource, DetectionData
from mdistiller.data.digits import WHITE, read_scans
from mdistiller.data.hashing import CANVAS, random_bits

CANVAS_SIDE = 128
NUM_IMAGES = {"train": 2000, "test": 400}
MOST_DIGITS, MOST_DISTRACTORS = 6, 8
SIDES = (14, 44)  # smallest and largest side of a pasted scan, in pixels
CONTRASTS = (30, 130)  # smallest and largest difference in grey levels between a stroke and the background
MOST_HIDDEN = 0.6  # a digit of which later ones cover more than this fraction has no label
INK = 0.25  # fraction of the largest value of a scan from which a pixel belongs to its box


@DATASETS.register("digits_detection")
def digits_detection(cfg: CfgNode, device: torch.device | str) -> DetectionData:
    """scikit-learn's scanned digits (Alpaydin & Kaynak, UCI, 1998) on canvases of 128x128 pixels.

    There are 2,000 training and 400 test images, each with 1 to 6 digits of 10 classes, of random size, contrast,
    polarity and position. Later digits cover earlier ones; textures, lines and parts of digits are distractors. An
    image is a function of (DATASET.DRAWN_SEED, split, number). Training and test images use different scans. Images are
    never mirrored.
    """
    train, test = (DigitCanvases(split, cfg.DATASET.DRAWN_SEED) for split in NUM_IMAGES)
    return DetectionData(train, test, cfg, device, name="digits_detection", flip=False)


@cache
def scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The scans (n, 8, 8), from 0 to 1, and digits (n,) of a split; every second scan belongs to the training set."""
    images, digits = read_scans()
    half = slice(0, None, 2) if split == "train" else slice(1, None, 2)
    return images[half].astype(np.float32) / WHITE, digits[half]


@cache
def annotations(split: str, seed: int) -> tuple[Annotation, ...]:
    """Those of all images of a split. They take seconds; a process that trains or measures several runs keeps them."""
    return tuple(Annotation(position, *draw_canvas(split, seed, position)[1:]) for position in range(NUM_IMAGES[split]))


class DigitCanvases(BoxSource):
    """The images of a split, each of which is generated whenever it is read."""

    categories = tuple((digit, str(digit)) for digit in range(10))

    def __init__(self, split: str, seed: int):
        self.split, self.seed, number = split, seed, NUM_IMAGES[split]
        self.sizes = np.full((number, 2), CANVAS_SIDE, np.int64)
        self.annotations = annotations(split, seed)
        self.truth = {one.image_id: _truth(one) for one in self.annotations}

    def image(self, position):
        canvas = draw_canvas(self.split, self.seed, position)[0]
        rng = _generator(self.split, self.seed, position, draw=1)
        noise = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(2, 14)
        return Image.fromarray((canvas + noise).clip(0, 255).astype(np.uint8))

    def fingerprint(self):
        digest = hashlib.sha256(f"{self.split} {self.seed} {CANVAS_SIDE}".encode())
        for one in self.annotations:
            digest.update(one.boxes.tobytes() + one.labels.tobytes())
        return digest.hexdigest()


def draw_canvas(split: str, seed: int, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels (128, 128, 3) float32, boxes (n, 4), labels (n,)) of an image, a function of the arguments.

    A label is the digit plus 1. The noise is not included; `DigitCanvases.image` adds it.
    """
    rng = _generator(split, seed, position, draw=0)
    canvas = _background(rng)
    images, digits = scans(split)
    for _ in range(rng.integers(MOST_DISTRACTORS + 1)):
        _distract(canvas, rng, images)
    owner = np.zeros((CANVAS_SIDE, CANVAS_SIDE), np.int64)  # number of the digit, from 1, to which a pixel belongs
    boxes, labels, ink = [], [], []
    for number in range(1, rng.integers(1, MOST_DIGITS + 1) + 1):
        which = rng.integers(len(images))
        box, inked = _paste(canvas, owner, number, images[which], rng)
        boxes.append(box)
        labels.append(digits[which] + 1)
        ink.append(inked)
    visible = np.bincount(owner.ravel(), minlength=len(ink) + 1)[1:] / np.array(ink)
    kept = visible > 1 - MOST_HIDDEN
    return canvas, np.array(boxes, np.float32)[kept], np.array(labels, np.int64)[kept]


def _generator(split, seed, position, draw):
    bits = random_bits(seed, CANVAS, list(NUM_IMAGES).index(split), [position], count=2)[0, draw]
    return np.random.Generator(np.random.PCG64(int(bits)))


def _background(rng):
    """Smooth random spots of colour, (128, 128, 3) float32."""
    coarse = rng.uniform(60, 190, (5, 5, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((CANVAS_SIDE, CANVAS_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image).astype(np.float32)


def _scaled(scan, side):
    image = Image.fromarray((scan * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).astype(np.float32) / 255


def _colour(rng):
    """A signed difference of grey levels, with a tint."""
    return rng.uniform(*CONTRASTS) * rng.choice((-1, 1)) * rng.uniform(0.6, 1.0, 3)


def _place(rng, side):
    return rng.integers(0, CANVAS_SIDE - side + 1, 2)


def _paste(canvas, owner, number, scan, rng):
    """Draw a digit; returns its box and its number of pixels."""
    side = rng.integers(SIDES[0], SIDES[1] + 1)
    alpha, (top, left) = _scaled(scan, side), _place(rng, side)
    region = np.s_[top:top + side, left:left + side]
    canvas[region] = canvas[region] * (1 - alpha[..., None]) + (canvas[region].mean((0, 1)) + _colour(rng)) * alpha[
        ..., None]
    inked = alpha > INK
    owner[region][inked] = number
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return box, max(int(inked.sum()), 1)


def _distract(canvas, rng, images):
    """Draw a distractor: a bar, a quarter of a digit, or a digit with its halves exchanged."""
    side = rng.integers(8, SIDES[1])
    top, left = _place(rng, side)
    region = np.s_[top:top + side, left:left + side]
    if rng.random() < 0.5:
        alpha = np.zeros((side, side), np.float32)
        alpha[side // 3:side // 3 + max(2, side // 8)] = 1
        alpha = alpha if rng.random() < 0.5 else alpha.T
    else:
        scan = images[rng.integers(len(images))]
        piece = scan[:4, :4] if rng.random() < 0.5 else np.roll(scan, 4, axis=rng.integers(2))
        alpha = _scaled(piece, side)
    canvas[region] += _colour(rng) * alpha[..., None]


def _truth(annotation):
    """The annotations of an image in COCO's form; their ids consist of the image's id and a number within the image."""
    found = []
    for place, (box, label) in enumerate(zip(annotation.boxes.tolist(), annotation.labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        found.append({
            "id": annotation.image_id * (MOST_DIGITS + 1) + place + 1, "image_id": annotation.image_id,
            "category_id": label - 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
        })
    return found
