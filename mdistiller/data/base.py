"""The base class of image data sets: batches of an epoch, batches of a split, and metadata."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from mdistiller.data.hashing import permutation
from mdistiller.data.images import Normalise, upload
from mdistiller.data.info import DataInfo

VIEWS = ("image", "image_strong")  # of an image that a batch may hold


def order_seed(cfg: CfgNode) -> int:
    """The seed of batch order and augmentation: DATASET.SEED, or the seed of the run (EXPERIMENT.SEED) if it is None.

    With separate seeds, the variance of a result can be split into its sources, and runs with different seeds can see
    the same views in the same order.
    """
    return cfg.EXPERIMENT.SEED if cfg.DATASET.SEED is None else cfg.DATASET.SEED


def in_order(views: Sequence[str]) -> tuple[str, ...]:
    """"image" and the named views, in the order of `VIEWS`."""
    return tuple(view for view in VIEWS if view == "image" or view in views)


class Data:
    """Batches of a data set. A batch is a dict: image (B, 3, H, W), target (B,), index (B,), ... on `device`.

    Every augmentation is a function of (`order_seed`, epoch, index), so it does not depend on batch order, ranks,
    workers or resuming. Subclasses make the images, in `_train_images`, `_eval_images` and `_plain_images`.
    """

    items = "images"  # name of the samples
    views_are_finite = False  # whether the views form a finite set, given by `train_views` and `image_at`

    def __init__(self, cfg: CfgNode, device: torch.device | str, labels: np.ndarray, held_out: dict, **metadata):
        """`labels` (num_train,) of the training images; `held_out` those of other splits; `metadata` for `DataInfo`."""
        self.device = torch.device(device)
        # Other devices (MPS, XLA) would copy strided windows completely and have no float64, so images are made on the
        # CPU and moved to them in batches.
        self.home = self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")
        self.seed = order_seed(cfg)
        self.batch_size, self.eval_batch_size = cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE
        self.accumulate = cfg.SOLVER.ACCUMULATE
        self.labels = labels
        self._targets = {split: upload(targets, self.device) for split, targets in held_out.items()}
        self.info = DataInfo(num_train=len(labels), targets=torch.from_numpy(labels), **metadata)
        self.normalise = Normalise(self.info.mean, self.info.std, self.info.image_size, self.home)

    @property
    def num_batches(self) -> int:
        """Number of batches in a training epoch; the last one may be smaller."""
        return -(-self.info.num_train // self.batch_size)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of `eval_batches`: ("test",), or ("val", "test") with VAL_FRACTION."""
        return tuple(self._targets)

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of an epoch from number `start` on; with several ranks, the part of each global batch for `rank`.

        `index` is the position 0..num_train-1 of each sample. "image_strong" in `views` adds the strong view. An update
        consists of SOLVER.ACCUMULATE batches of all ranks. `share` (a float) is the fraction of the update's images in
        this batch, times the number of ranks, so that the mean loss of the update is the sum of share * (mean loss of a
        batch), averaged over ranks. A batch without `share` is a whole update. A rank that would have no sample gets
        one with a share of 0. Raises ValueError for an unknown view.
        """
        if not set(views) <= set(VIEWS):
            raise ValueError(f"views {tuple(views)}: expected some of {', '.join(VIEWS)}")
        views = in_order(views)
        order = permutation(self.seed, epoch, self.info.num_train)
        # in batch order, so that a batch is a slice
        index, target = upload(np.stack([order, self.labels[order]]), self.device)
        pieces = [self._piece(number, rank, world_size) for number in range(start, self.num_batches)]
        images = self._train_images(epoch, order, [slice(low, high) for low, high, _ in pieces], views)
        for (low, high, share), batch in zip(pieces, images, strict=True):
            batch |= {"target": target[low:high], "index": index[low:high]}
            yield batch if world_size == self.accumulate == 1 else batch | {"share": share}

    def train_index(
        self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, index) of each batch of `train_batches` with the same arguments; the index is an array (B,)."""
        order = permutation(self.seed, epoch, self.info.num_train)
        for number in range(start, self.num_batches):
            low, high, _ = self._piece(number, rank, world_size)
            yield epoch, order[low:high]

    def views_at(self, epoch: int, index: np.ndarray, views: Sequence[str]) -> dict[str, Tensor]:
        """{view: (n, 3, H, W)}: training images `index` (n,) as they are in an epoch, in "image" and these views."""
        (images,) = self._train_images(epoch, index, [slice(0, len(index))], in_order(views))
        return images

    def batch_index(self, epoch: int, step: int) -> np.ndarray:
        """Positions (B,) in 0..num_train-1 of the images in global batch number `step` (from 0) of an epoch."""
        order = permutation(self.seed, epoch, self.info.num_train)
        return order[step * self.batch_size:(step + 1) * self.batch_size]

    def eval_starts(self, split: str, rank: int = 0, world_size: int = 1) -> range:
        """Positions in a split at which the batches of `eval_batches` with the same arguments begin."""
        return range(rank * self.eval_batch_size, len(self._targets[split]), world_size * self.eval_batch_size)

    def eval_batches(self, split: str = "test", rank: int = 0, world_size: int = 1) -> Iterator[dict]:
        """All images of a split once, in order, without augmentation: image, target, index (position in the split).

        With several ranks, each gets every `world_size`-th batch, which may be no batch at all.
        """
        target = self._targets[split]
        index = torch.arange(len(target), device=self.device)
        pieces = [slice(low, min(low + self.eval_batch_size, len(target)))
                  for low in self.eval_starts(split, rank, world_size)]
        for piece, image in zip(pieces, self._eval_images(split, pieces), strict=True):
            yield {"image": image, "target": target[piece], "index": index[piece]}

    def plain_batches(self, index: np.ndarray) -> Iterator[dict]:
        """Training images at positions `index` (N,), in that order, without augmentation: image, target, index."""
        pieces = [index[low:low + self.eval_batch_size] for low in range(0, len(index), self.eval_batch_size)]
        for piece, image in zip(pieces, self._plain_images(pieces), strict=True):
            target, positions = upload(np.stack([self.labels[piece], piece]), self.device)
            yield {"image": image, "target": target, "index": positions}

    def _piece(self, number, rank, world_size):
        """Range [low, high) of the epoch's order for a rank, divided as by np.array_split, and its share."""
        first, size = number * self.batch_size, self._size(number)
        least, larger = divmod(size, world_size)
        low = first + rank * least + min(rank, larger)
        length = least + (rank < larger)
        if not length:
            return first, first + 1, 0.0
        start = number - number % self.accumulate
        update = sum(self._size(other) for other in range(start, min(start + self.accumulate, self.num_batches)))
        return low, low + length, length * world_size / size * size / update

    def _size(self, number):
        """Number of images in a global batch; the last one of an epoch may be smaller."""
        return min(self.batch_size, self.info.num_train - number * self.batch_size)

    def _finish(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) on `home` -> normalised (B, 3, H, W) on the device."""
        return self.normalise(images).to(self.device)

    def _train_images(self, epoch: int, order: np.ndarray, pieces: list[slice], views: tuple) -> Iterator[dict]:
        """{view: (B, 3, H, W)} for each piece, with the images at order[piece]."""
        raise NotImplementedError

    def _eval_images(self, split: str, pieces: list[slice]) -> Iterator[Tensor]:
        """(B, 3, H, W) for each piece of a split."""
        raise NotImplementedError

    def _plain_images(self, pieces: list[np.ndarray]) -> Iterator[Tensor]:
        """(B, 3, H, W) for each array of positions, with training images."""
        raise NotImplementedError
