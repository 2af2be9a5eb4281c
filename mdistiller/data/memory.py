"""Data sets of small images, kept in memory as uint8 and augmented and normalised in batches on the device."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from mdistiller.data.base import Data
from mdistiller.data.hashing import STRONG_VIEW, WEAK_VIEW
from mdistiller.data.images import CHUNK, NUM_VIEWS, PaddedImages, random_rotations, random_views, upload
from mdistiller.data.splits import train_val_positions
from mdistiller.data.strong import rotate, strong_augment


@dataclass(frozen=True)
class ImageSource:
    """A data set as it is read from files: NumPy arrays of images (N, H, W, 3) uint8 and labels (N,) int64."""

    name: str
    family: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    classes: tuple[str, ...] | None
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    flip: bool = True  # whether a mirrored image still belongs to its class


class InMemoryData(Data):
    """Batches of an `ImageSource`, cropped from images on the device, without waiting for the device.

    With DATASET.AUGMENTATION "crop_flip", a view is a random crop with a padding of 4 and a flip, one of 162 views.
    With "crop", or a source whose `flip` is False, there are no flips. "rotate_flip" rotates by up to 20 degrees
    instead of cropping.
    """

    def __init__(self, source: ImageSource, cfg: CfgNode, device: torch.device | str):
        train, val = train_val_positions(source.train_labels, cfg.DATASET.TRAIN_FRACTION, cfg.DATASET.VAL_FRACTION)
        held_out = {"val": (source.train_images[val], source.train_labels[val])} if len(val) else {}
        held_out["test"] = (source.test_images, source.test_labels)
        super().__init__(
            cfg, device, source.train_labels[train], {split: labels for split, (_, labels) in held_out.items()},
            name=source.name, num_classes=source.num_classes, image_size=source.train_images.shape[1],
            mean=source.mean, std=source.std, family=source.family, classes=source.classes,
            hasher=self._fingerprint,
        )
        self.flip = source.flip and cfg.DATASET.AUGMENTATION != "crop"
        self.views_are_finite = cfg.DATASET.AUGMENTATION != "rotate_flip"
        self.images = PaddedImages(source.train_images, train, self.home)
        self.held_out = {
            split: upload(np.ascontiguousarray(images), self.home) for split, (images, _) in held_out.items()
        }

    @property
    def view_numbers(self) -> np.ndarray:
        """The numbers of all possible views, in ascending order."""
        return np.arange(0, NUM_VIEWS, 1 if self.flip else 2)

    def train_views(
        self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(index, view) of each batch of `train_batches` with the same arguments, as arrays (B,)."""
        for _, index in self.train_index(epoch, start, rank, world_size):
            yield index, random_views(self.seed, WEAK_VIEW, epoch, index, self.flip)

    def image_at(self, index: Tensor, view: Tensor) -> Tensor:
        """Normalised training images (B, 3, H, W) at indices (B,), in views (B,)."""
        index, view = index.to(self.home), view.to(self.home)
        return self._finish(self.images.cut(self.images.start(index, view), view % 2))

    def _train_images(self, epoch, order, pieces, views):
        plan, degrees = self._draw(WEAK_VIEW, epoch, order)
        for piece in pieces:
            batch = {"image": self._finish(self._cut(plan[:, piece], degrees[piece]))}
            if "image_strong" in views:
                batch["image_strong"] = self._strong(epoch, order[piece])
            yield batch

    def _eval_images(self, split, pieces):
        return (self._finish(self.held_out[split][piece]) for piece in pieces)

    def _plain_images(self, pieces):
        return (self._finish(self.images.interior[torch.from_numpy(piece).to(self.home)]) for piece in pieces)

    def _strong(self, epoch, index):
        """The strong view of samples (an array of indices): a separate crop and flip, then `strong_augment`."""
        images = self._cut(*self._draw(STRONG_VIEW, epoch, index))
        return self._finish(strong_augment(images, self.seed, epoch, index))

    def _draw(self, stream, epoch, index):
        """For samples (n,): starts of windows and flips (2, n), on `home`, and rotations (n,) in degrees."""
        if self.views_are_finite:
            view, degrees = random_views(self.seed, stream, epoch, index, self.flip), np.zeros(len(index))
        else:
            view, degrees = random_rotations(self.seed, stream, epoch, index, self.flip)
        return upload(np.stack([self.images.start(index, view), view % 2]), self.home), degrees

    def _cut(self, plan, degrees):
        images = self.images.cut(*plan)
        return images if self.views_are_finite else rotate(images, degrees)

    def _fingerprint(self):
        digest = hashlib.sha256(str(tuple(self.images.interior.shape)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for chunk in self.images.interior.split(CHUNK):
            digest.update(chunk.contiguous().cpu().numpy())
        return digest.hexdigest()
