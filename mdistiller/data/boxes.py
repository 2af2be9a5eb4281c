"""Resizing and mirroring of images with boxes, and the order of their batches.

Boxes are float32 (n, 4): corners x1, y1, x2, y2 in pixels.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from mdistiller.data.hashing import DETECTION_SAMPLING, DETECTION_VIEW, below, permutation, random_bits

LEAST_SIDE = 1.0  # in pixels; boxes must be wider and higher than this


class Annotation(NamedTuple):
    """The boxes of one image; labels (n,) are 1..C."""

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray


def resized(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """The new (height, width): the shorter side is `short`, or less if the longer side would exceed `longest`.

    As in detectron2, both sides are scaled in floating point and rounded, with halves rounded up.
    """
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def scale_boxes(boxes: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """Boxes after their image was resized from `before` (height, width) to `after`."""
    factors = np.array([after[1] / before[1], after[0] / before[0]] * 2, np.float64)
    return (boxes * factors).astype(np.float32)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes after their image of this width was mirrored; doing it twice gives the original boxes."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to the image, and booleans (n,): which of them are still more than a pixel wide and high."""
    clipped = np.clip(boxes, 0, np.array([width, height] * 2))
    return clipped, ((clipped[:, 2:] - clipped[:, :2]) > LEAST_SIDE).all(axis=1)


class View(NamedTuple):
    """The augmentation of a training image: its shorter side, and whether it is mirrored."""

    short: int
    flip: bool


def draw_views(seed: int, epoch: int | np.ndarray, index: np.ndarray, sizes: list[int], flip: bool) -> list[View]:
    """Random views of images, a function of (seed, epoch, index): uniform over `sizes`, mirrored half of the time.

    `epoch` is an integer, or an array of one for each image.
    """
    bits = random_bits(seed, DETECTION_VIEW, epoch, index, count=2)
    sides, mirrored = below(bits[:, 0], len(sizes)), below(bits[:, 1], 2)
    return [View(sizes[side], bool(flip and mirror)) for side, mirror in zip(sides, mirrored, strict=True)]


def draw_seeds(seed: int, epoch: int | np.ndarray, index: np.ndarray) -> list[int]:
    """For each image, the seed (0..2**62-1) of the random choice of its anchors and proposals in its `epoch`."""
    return [int(bits) >> 2 for bits in random_bits(seed, DETECTION_SAMPLING, epoch, index)[:, 0]]


def show(image: Image.Image, boxes: np.ndarray, view: View, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image in a view, (H, W, 3) uint8, resized by Pillow's bilinear filter, and its boxes."""
    size = resized(image.height, image.width, view.short, longest)
    boxes = scale_boxes(boxes, (image.height, image.width), size)
    if size != (image.height, image.width):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return (pixels[:, ::-1].copy(), flip_boxes(boxes, size[1])) if view.flip else (pixels.copy(), boxes)


class GroupedOrder:
    """An endless sequence of batches, each with images of one group; a function of (seed, number of the batch).

    As in detectron2, the images are shuffled in every pass, and each is added to the next batch of its group. A batch
    is used as soon as it is full, and images that remain at the end of a pass are kept for the next one. `groups` (N,)
    has the group of each image, small integers from 0.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int):
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.counts = np.bincount(groups)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(passes (B,) from 1, positions (B,)) of the images in batch `number`, which counts from 0."""
        first = self._pass_of(number)
        return self._batches(first)[number - self._done(first)]

    def _done(self, passes):
        """Number of batches that are complete after this number of passes."""
        return int((passes * self.counts // self.batch_size).sum())

    def _pass_of(self, number):
        low, high = 0, 1
        while self._done(high) <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._done(middle) <= number else (low, middle)
        return low

    def _batches(self, number):
        """All batches that become complete in pass `number`, which counts from 0."""
        if getattr(self, "_last", (None,))[0] == number:
            return self._last[1]
        waiting = [self._left_over(group, number) for group in range(len(self.counts))]
        batches = []
        for position in permutation(self.seed, number + 1, len(self.groups)):
            queue = waiting[self.groups[position]]
            queue.append((number + 1, int(position)))
            if len(queue) == self.batch_size:
                batches.append(tuple(np.array(column) for column in zip(*queue, strict=True)))
                queue.clear()
        self._last = (number, batches)
        return batches

    def _left_over(self, group, number):
        """The images of a group that remain from earlier passes, the oldest first."""
        missing, found = int(number * self.counts[group] % self.batch_size), []
        while missing:
            order = permutation(self.seed, number, len(self.groups))
            mine = [(number, int(position)) for position in order if self.groups[position] == group][-missing:]
            found, missing, number = mine + found, missing - len(mine), number - 1
        return found
