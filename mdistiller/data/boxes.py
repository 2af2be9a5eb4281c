"""Images with boxes, resized and mirrored together, and the order in which they are batched.

Boxes are corners (x1, y1, x2, y2) in pixels, float32 (n, 4).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from mdistiller.data.hashing import DETECTION_SAMPLING, DETECTION_VIEW, below, permutation, random_bits

LEAST_SIDE = 1.0  # pixels; boxes that are not wider and higher are dropped


class Annotation(NamedTuple):
    """What is on one image. Labels (n,) are 1..C."""

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray


def resized(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(height, width) whose shorter side is `short`, unless the longer would pass `longest`: detectron2's rule.

    Both sides are scaled in floating point and rounded half up.
    """
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def scale_boxes(boxes: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """Boxes of an image of size `before` (height, width) on the image resized to `after`."""
    factors = np.array([after[1] / before[1], after[0] / before[0]] * 2, np.float64)
    return (boxes * factors).astype(np.float32)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes of an image of that width on its mirror image; twice is the identity."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes cut off at the image's border, and which of them (n,) are still more than a pixel wide and high."""
    clipped = np.clip(boxes, 0, np.array([width, height] * 2))
    return clipped, ((clipped[:, 2:] - clipped[:, :2]) > LEAST_SIDE).all(axis=1)


class View(NamedTuple):
    """How a training image is shown: its shorter side, and whether it is mirrored."""

    short: int
    flip: bool


def draw_views(seed: int, epoch: int, index: np.ndarray, sizes: list[int], flip: bool) -> list[View]:
    """The view of each image in an epoch: a function of (seed, epoch, index), uniform over `sizes`, half mirrored."""
    bits = random_bits(seed, DETECTION_VIEW, epoch, index, count=2)
    sides, mirrored = below(bits[:, 0], len(sizes)), below(bits[:, 1], 2)
    return [View(sizes[side], bool(flip and mirror)) for side, mirror in zip(sides, mirrored, strict=True)]


def draw_seeds(seed: int, epoch: int, index: np.ndarray) -> list[int]:
    """What each image's random choice of anchors and proposals in an epoch is a function of, 0..2**62-1."""
    return [int(bits) >> 2 for bits in random_bits(seed, DETECTION_SAMPLING, epoch, index)[:, 0]]


def show(image: Image.Image, boxes: np.ndarray, view: View, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The image (RGB) in that view, (H, W, 3) uint8, resized by Pillow's bilinear filter, and its boxes."""
    size = resized(image.height, image.width, view.short, longest)
    boxes = scale_boxes(boxes, (image.height, image.width), size)
    if size != (image.height, image.width):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return (pixels[:, ::-1].copy(), flip_boxes(boxes, size[1])) if view.flip else (pixels.copy(), boxes)


class GroupedOrder:
    """Batches of images of one shape group: an endless stream, a function of (seed, number of the batch).

    Every pass over the images is shuffled and its images go to their group's batch in turn, which is given out once it
    is full; what is left of a pass waits for the next one, as in detectron2. `groups` (N,) are small numbers.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int):
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.counts = np.bincount(groups)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(passes (B,) from 1, positions (B,)) of the images of batch `number`, from 0."""
        first = self._pass_of(number)
        return self._batches(first)[number - self._done(first)]

    def _done(self, passes):
        """Batches given out in that many passes."""
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
        """All batches that are given out during pass `number`, from 0."""
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
        """What earlier passes left in the queue of a group, the oldest first."""
        missing, found = int(number * self.counts[group] % self.batch_size), []
        while missing:
            order = permutation(self.seed, number, len(self.groups))
            mine = [(number, int(position)) for position in order if self.groups[position] == group][-missing:]
            found, missing, number = mine + found, missing - len(mine), number - 1
        return found
