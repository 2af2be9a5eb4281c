"""Crops of images of any size, equal to torchvision's RandomResizedCrop and to Resize with CenterCrop."""

import importlib
import math
from types import ModuleType

import numpy as np
from torch import Tensor

SCALE = (0.08, 1.0)  # bounds of the fraction of the image's area
RATIO = (3 / 4, 4 / 3)  # bounds of width / height
ATTEMPTS = 10
CROP_DRAWS = 4 * ATTEMPTS + 1  # area, ratio, top and left of each attempt, and the flip
RESIZE = 256 / 224  # evaluation: the shorter side of the resized image over that of the crop


def transforms() -> ModuleType:
    """torchvision's functions on images, imported when the first image is read because this takes seconds."""
    return importlib.import_module("torchvision.transforms.v2.functional")


def random_resized_crop(image: Tensor, draws: np.ndarray, size: int, flip: bool) -> Tensor:
    """A random part of the image, resized to (3, size, size) and, with `flip`, mirrored half of the time.

    The image is (3, H, W) uint8, as is the result; bilinear with antialiasing. `draws` (41,) are uniform in [0, 1).
    """
    tv = transforms()
    crop = tv.resized_crop(image, *crop_box(draws, *image.shape[1:]), [size, size], antialias=True)
    return tv.horizontal_flip(crop) if flip and draws[-1] < 0.5 else crop


def crop_box(draws: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part, as a function of `draws` (40 or more).

    It is the first of ten attempts that fits into the image; the area and the position are uniform and the ratio is
    log-uniform. If none fits, it is the largest central part of the image with a ratio within the bounds.
    """
    area, ratio, top, left = draws[: 4 * ATTEMPTS].reshape(4, ATTEMPTS)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    ratio = np.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio)
    widths, heights = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        h, w = int(heights[first]), int(widths[first])
        return int(top[first] * (height - h + 1)), int(left[first] * (width - w + 1)), h, w
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def middle_crop(image: Tensor, size: int) -> Tensor:
    """The centre of an image for evaluation: size x size pixels after resizing the shorter side to size * 256 / 224."""
    tv = transforms()
    return tv.center_crop(tv.resize(image, [round(size * RESIZE)], antialias=True), [size, size])
