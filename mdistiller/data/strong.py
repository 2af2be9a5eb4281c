"""The strong view of Jin, Wang & Lin (CVPR 2023): two random operations and a cutout, on batches of uint8 images.

The results equal those of Pillow for every pixel. The operations are chosen on the CPU, so samples can be sorted by
operation without waiting for the device, and each operation is applied to all of its samples at once.
"""

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.hashing import STRONG_OPERATIONS, below, random_bits, uniform
from mdistiller.data.images import upload

# Name and range of the magnitude. Operations of the same kind follow each other (see `_apply`).
OPERATIONS = (
    ("Brightness", 0.05, 0.95),
    ("Posterize", 4, 8),
    ("Solarize", 0, 256),
    ("Contrast", 0.05, 0.95),
    ("AutoContrast", 0, 1),
    ("Equalize", 0, 1),
    ("Color", 0.05, 0.95),
    ("Sharpness", 0.05, 0.95),
    ("Rotate", -30, 30),
    ("ShearX", -0.3, 0.3),
    ("ShearY", -0.3, 0.3),
    ("TranslateX", -0.3, 0.3),
    ("TranslateY", -0.3, 0.3),
    ("Identity", 0, 1),
)
BRIGHTNESS, POSTERIZE, SOLARIZE, CONTRAST, AUTOCONTRAST, EQUALIZE, COLOR, SHARPNESS = range(8)
ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, IDENTITY = range(8, 14)
DRAWS = 2
CUTOUT_SIDE = 0.5  # largest side as a fraction of the width
CUTOUT_COLOUR = (125, 123, 114)
LEVELS = 256
FIXED = 1 << 16  # Pillow's affine transforms count in 1/65536 of a pixel

_LOW, _HIGH = (np.array([operation[bound] for operation in OPERATIONS], np.float64) for bound in (1, 2))


def strong_augment(images: Tensor, seed: int, epoch: int, index: np.ndarray) -> Tensor:
    """The strong view, a function of (seed, epoch, index): (B, H, W, 3) uint8 -> the same; `index` is an array (B,)."""
    operations, magnitudes, box = strong_draws(seed, epoch, index)
    return cutout(apply_operations(images, operations, magnitudes), box)


def strong_draws(seed: int, epoch: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random operations (B, 2), drawn with replacement, their magnitudes (B, 2), and the draws (B, 3) for `cutout`."""
    bits = random_bits(seed, STRONG_OPERATIONS, epoch, index, count=2 * DRAWS + 3)
    operations = below(bits[:, :DRAWS], len(OPERATIONS))
    magnitudes = _LOW[operations] + (_HIGH - _LOW)[operations] * uniform(bits[:, DRAWS : 2 * DRAWS])
    return operations, magnitudes, uniform(bits[:, 2 * DRAWS :])


def apply_operations(images: Tensor, operations: np.ndarray, magnitudes: np.ndarray) -> Tensor:
    """Apply operations[:, 0], then operations[:, 1], and so on: (B, H, W, 3) uint8 -> (B, H, W, 3) uint8.

    `operations` (B, n) are indices of `OPERATIONS`, and `magnitudes` (B, n) are float64, both NumPy arrays.
    """
    rows = np.arange(len(images))  # the sample of each row, as rows are sorted again for every draw
    for draw in range(operations.shape[1]):
        order = np.argsort(operations[rows, draw], kind="stable")
        rows = rows[order]
        images = images.index_select(0, upload(order, images.device))
        images = _apply(images, operations[rows, draw], magnitudes[rows, draw])
    return images.index_select(0, upload(np.argsort(rows), images.device))


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Rotate each image to the left about its centre, with black corners: (B, H, W, 3) uint8, (B,) float64 -> uint8."""
    return _warp(images, np.full(len(images), ROTATE), degrees)


def cutout(images: Tensor, draws: np.ndarray) -> Tensor:
    """Fill a square of each image. `draws` (B, 3) in [0, 1) give the side (up to half the width) and the centre x, y.

    As in the released code, the centre is in (1, size], since numpy's uniform(size) is uniform between size and 1. The
    upper left corner is moved into the image and rounded down, and the side is added to it for the lower right corner.
    Both corners belong to the square.
    """
    _, height, width, channels = images.shape
    side = CUTOUT_SIDE * width * draws[:, 0]
    limits = []
    for size, draw in ((width, draws[:, 1]), (height, draws[:, 2])):
        centre = size - (size - 1) * draw
        first = np.floor(np.maximum(centre - side / 2, 0))
        limits += [first, np.floor(np.minimum(first + side, size))]
    left, right, top, bottom = upload(np.stack(limits).astype(np.int64)[:, :, None], images.device)
    y = torch.arange(height, device=images.device)
    # every column is repeated for each channel, so that the mask of a row is one contiguous range
    x = torch.arange(width * channels, device=images.device) // channels
    inside = ((y >= top) & (y <= bottom))[:, :, None] & ((x >= left) & (x <= right))[:, None, :]
    colour = upload(np.tile(np.array(CUTOUT_COLOUR, np.uint8), width), images.device)
    return torch.where(inside, colour, images.view(len(images), height, -1)).view_as(images)


def _apply(images, operations, magnitudes):
    """Apply one operation to each image; `operations` are in ascending order, so that each kind is a slice."""
    ends = np.searchsorted(operations, [COLOR, SHARPNESS, ROTATE, IDENTITY])
    results, begin = [], 0
    for kind, end in zip((_map_levels, _color, _sharpness, _warp), ends, strict=True):
        if end > begin:
            results.append(kind(images[begin:end], operations[begin:end], magnitudes[begin:end]))
        begin = end
    return torch.cat([*results, images[begin:]])


# ---- operations on the levels of a channel: a table for each image and channel, all applied at once


def _map_levels(images, operations, magnitudes):
    number, height, width, channels = images.shape
    offset = torch.arange(number * channels, device=images.device, dtype=torch.int32) * LEVELS
    place = images.view(number, -1, channels).int() + offset.view(number, 1, channels)
    ends = np.searchsorted(operations, [CONTRAST, AUTOCONTRAST, EQUALIZE, COLOR])
    contrast, autocontrast, equalize = (slice(ends[i], ends[i + 1]) for i in range(3))
    fixed = _fixed_tables(operations[: ends[0]], magnitudes[: ends[0]])
    tables = [upload(fixed, images.device)[:, None].expand(-1, channels, -1)] if len(fixed) else []
    if contrast.stop > contrast.start:
        mean = _mean_gray(images[contrast])
        levels = torch.arange(LEVELS, dtype=torch.float32, device=images.device)
        table = _blend(mean[:, None], levels, _factors(magnitudes[contrast], images.device)[:, None])
        tables.append(table[:, None].expand(-1, channels, -1))
    if autocontrast.stop > autocontrast.start:
        tables.append(_autocontrast_tables(images[autocontrast]))
    if equalize.stop > equalize.start:
        tables.append(_equalize_tables(images[equalize]))
    return torch.cat(tables).flatten().index_select(0, place.flatten()).view_as(images)


def _fixed_tables(operations, magnitudes):
    """(n, 256) uint8 of brightness, posterize and solarize, which do not depend on the image."""
    level, value = np.arange(LEVELS), magnitudes[:, None]
    dark = np.trunc(np.float32(value) * level.astype(np.float32))
    coarse = level & ~((1 << (8 - value.astype(np.int64))) - 1)
    inverted = np.where(level < value, level, LEVELS - 1 - level)
    kind = operations[:, None]
    return np.where(kind == BRIGHTNESS, dark, np.where(kind == POSTERIZE, coarse, inverted)).astype(np.uint8)


def _autocontrast_tables(images):
    """(n, 3, 256): stretch the range of each channel to 0..255, in float64 as in Pillow."""
    low, high = (bound[..., None].double() for bound in images.flatten(1, 2).aminmax(dim=1))
    level = torch.arange(LEVELS, dtype=torch.float64, device=images.device)
    # Divide by a tensor; number / tensor would be a rounded reciprocal. Infinite for one level, which is then kept.
    scale = torch.full_like(high, 255.0) / (high - low)
    stretched = (level * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, level).to(torch.uint8)


def _equalize_tables(images):
    """(n, 3, 256): Pillow's integer histogram equalisation."""
    pixels = images.flatten(1, 2).transpose(1, 2).long()
    counts = torch.zeros(*pixels.shape[:2], LEVELS, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(dim=2, keepdim=True))  # count of the largest level that occurs
    step = (pixels.shape[2] - last) // 255
    below_level = counts.cumsum(2) - counts
    table = ((step // 2 + below_level) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, table, torch.arange(LEVELS, device=images.device)).to(torch.uint8)


# ---- operations that blend an image with a version of itself


def _gray(images):
    """(n, H, W, 3) uint8 -> (n, H, W) int32: Pillow's luma, ITU-R 601-2 in 16 bits."""
    red, green, blue = images.int().unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _mean_gray(images):
    """(n,) float32: the mean luma, rounded, with halves rounded up."""
    gray = _gray(images).flatten(1)
    return ((2 * gray.sum(1) + gray.shape[1]) // (2 * gray.shape[1])).float()


def _factors(magnitudes, device):
    return upload(magnitudes.astype(np.float32), device)


def _blend(degenerate, images, factor):
    """degenerate + factor * (images - degenerate), each step in float32, then truncated to uint8."""
    return (degenerate + factor * (images - degenerate)).to(torch.uint8)


def _color(images, operations, magnitudes):
    factor = _factors(magnitudes, images.device).view(-1, 1, 1, 1)
    return _blend(_gray(images)[..., None].float(), images.float(), factor)


def _sharpness(images, operations, magnitudes):
    """Blend with the smoothed image: 3x3 weights of 1, with 5 in the centre, over 13; the border is not smoothed."""
    pixels = images.to(torch.int16)
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels[:, 1:-1, 1:-1]
    smooth = images.float()
    smooth[:, 1:-1, 1:-1] = ((2 * total + 13) // 26).float()  # rounded; a half cannot occur
    return _blend(smooth, images.float(), _factors(magnitudes, images.device).view(-1, 1, 1, 1))


# ---- operations that move pixels, with nearest neighbours and black outside the image


def _warp(images, operations, magnitudes):
    number, height, width, channels = images.shape
    coefficients = upload(_affine(operations, magnitudes, height, width), images.device)
    a, b, c, d, e, f = coefficients[:, :, None, None]
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    source_x, source_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16  # (n, H, W)
    valid = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    image = torch.arange(number, dtype=torch.int32, device=images.device)[:, None, None]
    pixel = ((image * height + source_y) * width + source_x) * valid
    place = pixel[..., None] * channels + torch.arange(channels, dtype=torch.int32, device=images.device)
    return images.reshape(-1).index_select(0, place.flatten()).view_as(images) * valid[..., None]


def _affine(operations, magnitudes, height, width):
    """(6, n) int32: output (x, y) is input (a x + b y + c, d x + e y + f), in 1/65536 pixel, rounded as in Pillow."""
    one, zero = np.ones_like(magnitudes), np.zeros_like(magnitudes)
    angle = -np.radians(magnitudes)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    rotated = operations == ROTATE
    a = e = np.where(rotated, cos, one)
    b = np.where(rotated, sin, np.where(operations == SHEAR_X, magnitudes, zero))
    d = np.where(rotated, -sin, np.where(operations == SHEAR_Y, magnitudes, zero))
    x, y = width / 2, height / 2  # the centre of rotation
    c = np.where(rotated, a * -x + b * -y + x, zero)
    f = np.where(rotated, d * -x + e * -y + y, zero)
    fixed = np.floor(np.stack([a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2]) * FIXED + 0.5)
    # translations are whole pixels and not rounded to fixed point
    fixed[2] = np.where(operations == TRANSLATE_X, np.floor(magnitudes * width + 0.5) * FIXED, fixed[2])
    fixed[5] = np.where(operations == TRANSLATE_Y, np.floor(magnitudes * height + 0.5) * FIXED, fixed[5])
    return fixed.astype(np.int32)
