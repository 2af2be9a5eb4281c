"""Operations on batches of uint8 images: random crops and flips from memory, and normalisation."""

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.hashing import below, random_bits, uniform

PADDING = 4
OFFSETS = 2 * PADDING + 1
CHUNK = 4096  # number of images that are copied at a time
NUM_VIEWS = OFFSETS * OFFSETS * 2  # the number of a view is dy * 18 + dx * 2 + flip
CENTRE = PADDING * (2 * OFFSETS + 2)  # the number of the view that is the unchanged image
MAX_DEGREES = 20


def random_views(seed: int, stream: int, epoch: int, index: np.ndarray, flip: bool) -> np.ndarray:
    """Uniform random views (n,) int64 in 0..161, a crop and (with `flip`) a flip for each sample in an epoch.

    This is a random crop with a zero padding of 4 and a horizontal flip with probability 0.5.
    """
    bits = random_bits(seed, stream, epoch, index)[:, 0]
    return below(bits, NUM_VIEWS) if flip else 2 * below(bits, OFFSETS * OFFSETS)


def random_rotations(
    seed: int, stream: int, epoch: int, index: np.ndarray, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Views (n,) int64, each the image or its mirror image, and rotations (n,) float64 in degrees.

    The distribution is that of mdistiller's Tiny-ImageNet recipe: a rotation of at most 20 degrees, then a flip with
    probability 0.5. Here the flip is first, which is equivalent with the opposite rotation.
    """
    bits = random_bits(seed, stream, epoch, index, count=2)
    view = CENTRE + below(bits[:, 0], 2) * flip
    return view, MAX_DEGREES * (2 * uniform(bits[:, 1]) - 1)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device, without waiting for the transfer."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PaddedImages:
    """Images padded with zeros, so that every crop is a window into one block of memory.

    The images (M, H, W, 3) uint8 at `positions` (N,) are copied to the device, (H + 8) * (W + 8) * 3 bytes each, in
    channels-last order. `windows` is a strided view with one entry for each pixel at which a window can start.
    """

    def __init__(self, images: np.ndarray, positions: np.ndarray, device: torch.device):
        number, (_, height, width, channels) = len(positions), images.shape
        self.rows, self.columns = height + 2 * PADDING, width + 2 * PADDING
        padded = torch.zeros(number, self.rows, self.columns, channels, dtype=torch.uint8, device=device)
        self.interior = padded[:, PADDING : PADDING + height, PADDING : PADDING + width]
        for first in range(0, number, CHUNK):
            chunk = np.ascontiguousarray(images[positions[first : first + CHUNK]])
            self.interior[first : first + CHUNK] = torch.from_numpy(chunk).to(device)
        starts = (number * self.rows - height) * self.columns + self.columns - width + 1
        self.windows = padded.as_strided(
            (starts, height, width, channels), (channels, self.columns * channels, channels, 1)
        )

    def start(self, index, view):
        """Start of the windows of (index, view) pairs: integer arrays or tensors (n,) -> (n,)."""
        return (index * self.rows + view // (2 * OFFSETS)) * self.columns + view // 2 % OFFSETS

    def cut(self, start: Tensor, flip: Tensor) -> Tensor:
        """Starts (B,) and flips (B,), 0 or 1 -> images (B, H, W, 3) uint8, mirrored if the flip is 1."""
        crops = self.windows.index_select(0, start)
        # Make both versions and choose rows: copies of whole images are ten times faster than torch.where.
        both = torch.cat([crops, crops.flip(2)])
        return both.index_select(0, torch.arange(len(start), device=start.device) + len(start) * flip)


class Normalise:
    """(x / 255 - mean) / std: uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in channels-last memory; `width` is W.

    Each step is rounded to float32, as in torchvision's ToTensor and Normalize.
    """

    def __init__(self, mean: tuple, std: tuple, width: int, device: torch.device):
        # statistics for whole rows of an image, so that inner loops run over a row and not over three channels
        self.mean, self.std = (torch.tensor(values, device=device).repeat(width) for values in (mean, std))
        # a tensor, because CUDA replaces a division by a Python number by a product with its rounded reciprocal
        self.scale = torch.tensor(255.0, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        batch, height, width, _ = images.shape
        pixels = images.view(batch * height, -1).float()
        pixels.div_(self.scale).sub_(self.mean).div_(self.std)
        return pixels.view(batch, height, width, -1).permute(0, 3, 1, 2)
