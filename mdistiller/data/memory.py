"""Data sets of small images: all in memory as uint8, augmented and normalised as whole batches on the device."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from mdistiller.data.hashing import STRONG_VIEW, WEAK_VIEW, permutation
from mdistiller.data.images import CHUNK, Normalise, PaddedImages, random_views, upload
from mdistiller.data.info import DataInfo
from mdistiller.data.splits import train_val_positions
from mdistiller.data.strong import strong_augment

VIEWS = ("image", "image_strong")


@dataclass(frozen=True)
class ImageSource:
    """A data set as read from its files. Images (N, H, W, 3) uint8, labels (N,) int64, as NumPy arrays."""

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
    flip: bool = True  # whether a mirrored image is still one of its class


class InMemoryData:
    """Batches of an `ImageSource`. A batch is a dict: image (B, 3, H, W), target (B,), index (B,), ... on `device`.

    Every augmentation is a function of (EXPERIMENT.SEED, epoch, index): batch order, ranks and resume points do not
    matter, and nothing here waits for the device.
    """

    def __init__(self, source: ImageSource, cfg: CfgNode, device: torch.device | str):
        self.device = torch.device(device)
        # elsewhere (MPS, XLA) strided windows would be copied out in full: cut on the host, move the batch
        self.home = self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")
        self.seed, self.flip = cfg.EXPERIMENT.SEED, source.flip
        self.batch_size, self.eval_batch_size = cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE
        train, val = train_val_positions(source.train_labels, cfg.DATASET.TRAIN_FRACTION, cfg.DATASET.VAL_FRACTION)
        self.labels = source.train_labels[train]
        self.images = PaddedImages(source.train_images, train, self.home)
        self.normalise = Normalise(source.mean, source.std, source.train_images.shape[2], self.home)
        held_out = {"val": (source.train_images[val], source.train_labels[val])} if len(val) else {}
        held_out["test"] = (source.test_images, source.test_labels)
        self.held_out = {
            split: (upload(np.ascontiguousarray(images), self.home), upload(labels, self.home))
            for split, (images, labels) in held_out.items()
        }
        self._views = (None, None)  # the epoch last asked for, and its views by index
        self.info = DataInfo(
            name=source.name,
            num_classes=source.num_classes,
            num_train=len(train),
            image_size=source.train_images.shape[1],
            mean=source.mean,
            std=source.std,
            targets=torch.from_numpy(self.labels),
            family=source.family,
            classes=source.classes,
            hasher=self._fingerprint,
        )

    @property
    def num_batches(self) -> int:
        """Batches of a training epoch, the last one perhaps smaller."""
        return -(-self.info.num_train // self.batch_size)

    @property
    def splits(self) -> tuple[str, ...]:
        """What `eval_batches` can be asked for: ("test",), or ("val", "test") with VAL_FRACTION."""
        return tuple(self.held_out)

    def num_eval(self, split: str = "test") -> int:
        """Images of a split."""
        return len(self.held_out[split][1])

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of an epoch from number `start` on; with several ranks, this one's piece of each global batch.

        `index` is the position 0..num_train-1 of each sample, "image_strong" in `views` adds the strong view of MLD.
        With world_size > 1, `batch_fraction` (a float) is the piece's size over the mean piece's, so that the mean
        over ranks of batch_fraction * (mean loss of the piece) is the mean loss of the global batch; a rank left
        without a sample gets one, with a fraction of 0. Raises ValueError for an unknown view.
        """
        if not set(views) <= set(VIEWS):
            raise ValueError(f"views {tuple(views)}: known are {', '.join(VIEWS)}")
        order = permutation(self.seed, epoch, self.info.num_train)
        view = random_views(self.seed, WEAK_VIEW, epoch, order, self.flip)
        plan = np.stack([order, self.labels[order], self.images.start(order, view), view % 2])
        index, target, corner, mirrored = upload(plan, self.home)  # in batch order: a batch is a slice
        for number in range(start, self.num_batches):
            low, high, fraction = self._piece(number, rank, world_size)
            batch = {
                "image": self._finish(self.images.cut(corner[low:high], mirrored[low:high])),
                "target": target[low:high].to(self.device),
                "index": index[low:high].to(self.device),
            }
            if "image_strong" in views:
                batch["image_strong"] = self._strong(epoch, order[low:high])
            if world_size > 1:
                batch["batch_fraction"] = fraction
            yield batch

    def eval_batches(self, split: str = "test", rank: int = 0, world_size: int = 1) -> Iterator[dict]:
        """All images of a split once, in order, without augmentation: image, target, index (position in the split).

        Of several ranks each gets every `world_size`-th batch; there may be none for it.
        """
        images, labels = self.held_out[split]
        index = torch.arange(len(labels), device=self.device)
        for low in range(rank * self.eval_batch_size, len(labels), world_size * self.eval_batch_size):
            piece = slice(low, low + self.eval_batch_size)
            yield {
                "image": self._finish(images[piece]),
                "target": labels[piece].to(self.device),
                "index": index[piece],
            }

    def augmentation_views(self, epoch: int, index: Tensor) -> Tensor:
        """Which crop and flip the samples get in an epoch: (B,) int64, dy * 18 + dx * 2 + flip, on the device."""
        if self._views[0] != epoch:
            views = random_views(self.seed, WEAK_VIEW, epoch, np.arange(self.info.num_train), self.flip)
            self._views = epoch, upload(views, self.device)
        return self._views[1][index.to(self.device)]

    def image_at(self, index: Tensor, view: Tensor) -> Tensor:
        """(B, 3, H, W) normalised training images, (B,) indices in (B,) views."""
        index, view = index.to(self.home), view.to(self.home)
        return self._finish(self.images.cut(self.images.start(index, view), view % 2))

    def _piece(self, number, rank, world_size):
        """[low, high) of the epoch's order for this rank, as np.array_split divides, and the batch_fraction."""
        first = number * self.batch_size
        size = min(self.batch_size, self.info.num_train - first)
        share, larger = divmod(size, world_size)
        low = first + rank * share + min(rank, larger)
        length = share + (rank < larger)
        if not length:
            return first, first + 1, 0.0
        return low, low + length, length * world_size / size

    def _strong(self, epoch, index):
        """The strong view of samples (an array of indices): its own crop and flip, then RandAugment and cutout."""
        view = random_views(self.seed, STRONG_VIEW, epoch, index, self.flip)
        corner, mirrored = upload(np.stack([self.images.start(index, view), view % 2]), self.home)
        return self._finish(strong_augment(self.images.cut(corner, mirrored), self.seed, epoch, index))

    def _finish(self, images):
        return self.normalise(images).to(self.device)

    def _fingerprint(self):
        digest = hashlib.sha256(str(tuple(self.images.interior.shape)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for chunk in self.images.interior.split(CHUNK):
            digest.update(chunk.contiguous().cpu().numpy())
        return digest.hexdigest()
