"""Whole batches of uint8 images: random crops and flips cut from memory, and normalisation."""

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.hashing import below, random_bits, uniform

PADDING = 4
OFFSETS = 2 * PADDING + 1
CHUNK = 4096  # images copied at a time
NUM_VIEWS = OFFSETS * OFFSETS * 2  # a view is dy * 18 + dx * 2 + flip
CENTRE = PADDING * (2 * OFFSETS + 2)  # the view that is the image itself
MAX_DEGREES = 20


def random_views(seed: int, stream: int, epoch: int, index: np.ndarray, flip: bool) -> np.ndarray:
    """(n,) int64 in 0..161: which crop and flip each sample gets in an epoch, uniformly; without `flip`, none flipped.

    The distribution is that of a random crop with a zero padding of 4 and a horizontal flip of probability 0.5.
    """
    bits = random_bits(seed, stream, epoch, index)[:, 0]
    return below(bits, NUM_VIEWS) if flip else 2 * below(bits, OFFSETS * OFFSETS)


def random_rotations(
    seed: int, stream: int, epoch: int, index: np.ndarray, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which view, the image or its mirror image, and how many degrees to turn it: (n,) int64 and (n,) float64.

    The distribution is that of mdistiller's Tiny-ImageNet recipe, a rotation within 20 degrees and then a flip of
    probability 0.5: a mirrored image turned to the left is the image turned to the right and mirrored.
    """
    bits = random_bits(seed, stream, epoch, index, count=2)
    view = CENTRE + below(bits[:, 0], 2) * flip
    return view, MAX_DEGREES * (2 * uniform(bits[:, 1]) - 1)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device, without waiting for the transfer."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PaddedImages:
    """Images padded once with zeros, so that every crop is a window into one block of memory.

    Those at `positions` (N,) of images (M, H, W, 3) uint8 are copied to the device, (H + 8) * (W + 8) * 3 bytes each,
    channels last. `windows` is a strided view with one entry for each pixel at which a window may start.
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
        """Where the window of (index, view) pairs starts: integer arrays or tensors (n,) -> (n,)."""
        return (index * self.rows + view // (2 * OFFSETS)) * self.columns + view // 2 % OFFSETS

    def cut(self, start: Tensor, flip: Tensor) -> Tensor:
        """(B,) starts and (B,) integers 0 or 1 -> (B, H, W, 3) uint8, mirrored where flip is 1."""
        crops = self.windows.index_select(0, start)
        # Both versions, then a choice of rows: whole images are copied at memory speed, torch.where is ten times slower
        both = torch.cat([crops, crops.flip(2)])
        return both.index_select(0, torch.arange(len(start), device=start.device) + len(start) * flip)


class Normalise:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in channels-last memory: (x / 255 - mean) / std, every step rounded
    to float32 as in torchvision's ToTensor and Normalize. `width` is W.
    """

    def __init__(self, mean: tuple, std: tuple, width: int, device: torch.device):
        # whole rows of an image, so that the inner loops run over a row and not over three channels
        self.mean, self.std = (torch.tensor(values, device=device).repeat(width) for values in (mean, std))
        # a tensor on the device, since CUDA multiplies by the rounded reciprocal of a Python number
        self.scale = torch.tensor(255.0, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        batch, height, width, _ = images.shape
        pixels = images.view(batch * height, -1).float()
        pixels.div_(self.scale).sub_(self.mean).div_(self.std)
        return pixels.view(batch, height, width, -1).permute(0, 3, 1, 2)
