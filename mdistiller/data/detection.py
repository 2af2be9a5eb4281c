"""Batches of images with boxes, from any source."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from yacs.config import CfgNode

from mdistiller.data.base import order_seed
from mdistiller.data.boxes import Annotation, GroupedOrder, View, draw_seeds, draw_views, resized, show
from mdistiller.data.files import problem_of
from mdistiller.data.info import DataInfo
from mdistiller.data.splits import train_val_positions
from mdistiller.data.streamed import Workers, in_shared_memory
from mdistiller.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BoxSource:
    """Images with boxes, numbered from 0.

    `sizes` (N, 2) are heights and widths; `annotations` are used in training; `truth` are the annotations by image id,
    in COCO's form, for evaluation (`DetectionData` keeps only those that are evaluated); `categories` are pairs of id
    and name in ascending order.
    """

    sizes: np.ndarray
    annotations: Sequence[Annotation]
    truth: dict[int, list[dict]]
    categories: tuple[tuple[int, str], ...]

    def image(self, position: int) -> Image.Image:
        """The image as RGB. Raises the exceptions of Pillow."""
        raise NotImplementedError(f"{type(self).__name__} has no images")

    def place(self, position: int) -> str:
        """Name or path of an image, for messages."""
        return f"image {self.annotations[position].image_id}"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the annotations."""
        raise NotImplementedError(f"{type(self).__name__} has no fingerprint")


class BoxRequest(NamedTuple):
    """A request for a batch: the images of a split at `positions`, each with its view."""

    split: str
    positions: np.ndarray
    views: list[View]


class BoxReader(Dataset):
    """Makes batches in a worker: `BoxRequest` -> tensors for `unpacked`, or a text about a broken file.

    `pixels` (n,) uint8 are those of all images, one after the other, `boxes` (m, 4) those of all images, and `shapes`
    (B, 3) have height, width and number of boxes of each: a tensor for each image would take a file descriptor each.
    """

    def __init__(self, sources: dict[str, tuple[BoxSource, np.ndarray]], longest: int):
        self.sources, self.longest = sources, longest

    def __getitem__(self, request: BoxRequest) -> dict[str, Tensor] | str:
        source, kept = self.sources[request.split]
        examples: list[Any] = []

        def make(position, view):
            examples.append(show(source.image(position), source.annotations[position].boxes, view, self.longest))

        for position, view in zip(kept[request.positions], request.views, strict=True):
            problem = problem_of(make, position, view)
            if problem:
                return f"{source.place(position)} ({problem})"
        images, boxes = zip(*examples, strict=True)
        return in_shared_memory({
            "pixels": torch.from_numpy(np.concatenate([image.transpose(2, 0, 1).ravel() for image in images])),
            "boxes": torch.from_numpy(np.concatenate(boxes)),
            "shapes": torch.tensor([(*image.shape[:2], len(found)) for image, found in examples]),
        })


def unpacked(pixels: Tensor, boxes: Tensor, shapes: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """[(pixels (3, h, w) uint8, boxes (k, 4)) of each image] of a batch of `BoxReader`."""
    images = pixels.split([3 * height * width for height, width, _ in shapes])
    found = boxes.split([number for *_, number in shapes])
    return [(image.view(3, height, width), own)
            for image, own, (height, width, _) in zip(images, found, shapes, strict=True)]


class DetectionData:
    """Batches of images with boxes; all images of a batch are wide, or all are tall.

    A batch has `image`, a list of (3, h, w) uint8, RGB; `target`, a list of {"boxes", "labels", "image_id", "size"},
    where the size is (height, width) of the file; `seeds`, one int per image for the sampling of proposals; `canvas`,
    the (height, width) that holds the images of all ranks; and `index` (B,). Scale and mirroring are a function of
    (`order_seed`, pass over the images, index). An epoch consists of num_train // batch size batches of the endless
    sequence of `GroupedOrder`.
    """

    items = "images"
    views_are_finite = False

    def __init__(self, train: BoxSource, test: BoxSource, cfg: CfgNode, device, name: str, flip: bool):
        dataset = cfg.DATASET
        self.device, self.accumulate = torch.device(device), cfg.SOLVER.ACCUMULATE
        self.seed = order_seed(cfg)
        self.batch_size, self.eval_batch_size = cfg.SOLVER.BATCH_SIZE, dataset.TEST.BATCH_SIZE
        self.sides, self.test_side = list(dataset.MIN_SIZES), dataset.TEST.MIN_SIZE
        self.flip = flip and dataset.AUGMENTATION == "crop_flip"
        useful = np.flatnonzero([len(one.boxes) > 0 for one in train.annotations])
        if not len(useful):
            raise UserError(f"DATASET.ROOT {dataset.ROOT}: none of the training images has a box")
        chosen, val = train_val_positions(np.zeros(len(useful), np.int64), dataset.TRAIN_FRACTION,
                                          dataset.VAL_FRACTION)
        self.sources = {"train": (train, useful[chosen])} | ({"val": (train, useful[val])} if len(val) else {})
        self.sources["test"] = (test, np.arange(len(test.annotations)))
        evaluated = [train.annotations[one].image_id for one in useful[val]]
        train.truth = {one: train.truth[one] for one in evaluated}  # that of COCO's training images takes gigabytes
        heights, widths = train.sizes[useful[chosen]].T
        self.order = GroupedOrder((heights > widths).astype(np.int64), self.batch_size, self.seed)
        if self.num_batches < 1:
            raise UserError(f"SOLVER.BATCH_SIZE: {self.batch_size} is more than the {len(chosen)} training images")
        self.longest = dataset.MAX_SIZE
        self.workers = Workers(BoxReader(self.sources, self.longest), dataset.NUM_WORKERS,
                               self.device.type == "cuda")
        self.info = DataInfo(
            name=name, num_classes=len(train.categories), num_train=len(chosen), image_size=self.test_side, mean=MEAN,
            std=STD, targets=torch.zeros(len(chosen), dtype=torch.int64), family="detection",
            classes=tuple(label for _, label in train.categories), hasher=train.fingerprint, task="detection",
            categories=tuple(number for number, _ in train.categories),
        )

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return len(self.order.groups) // self.batch_size

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of `eval_batches`: ("test",), or ("val", "test") with VAL_FRACTION."""
        return tuple(split for split in self.sources if split != "train")

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of an epoch from number `start` on; with several ranks, the part for `rank` and its `share`.

        See `mdistiller.data.base.Data.train_batches`. Raises UserError if a rank would have no image.
        """
        if world_size > self.batch_size:
            raise UserError(f"SOLVER.BATCH_SIZE: {self.batch_size} images for {world_size} processes; expected at "
                            "least one image for each process")
        pieces = [self._piece(epoch, step, rank, world_size) for step in range(start, self.num_batches)]
        requests = [BoxRequest("train", index, self._views(passes, index)) for passes, index in pieces]
        source, kept = self.sources["train"]
        for step, (passes, index), examples in zip(
            range(start, self.num_batches), pieces, self._read(requests), strict=True
        ):
            batch = self._batch(source, kept[index], examples)
            batch["seeds"] = draw_seeds(self.seed, passes, index)
            batch["canvas"] = self._canvas(epoch, step)
            batch["index"] = torch.from_numpy(index).to(self.device)
            share = len(index) * world_size / (self.batch_size * self._updates(step))
            yield batch if share == 1.0 else batch | {"share": share}

    def batch_index(self, epoch: int, step: int) -> np.ndarray:
        """Positions (B,) in 0..num_train-1 of the images in global batch number `step` (from 0) of an epoch."""
        return self.order.batch((epoch - 1) * self.num_batches + step)[1]

    def eval_starts(self, split: str, rank: int = 0, world_size: int = 1) -> range:
        """Positions in a split at which the batches of `eval_batches` with the same arguments begin."""
        return range(rank * self.eval_batch_size, len(self.sources[split][1]), world_size * self.eval_batch_size)

    def eval_batches(self, split: str = "test", rank: int = 0, world_size: int = 1) -> Iterator[dict]:
        """All images of a split once, in order, at the test size; `truth` is a list of their annotations.

        With several ranks, each gets every `world_size`-th batch, which may be no batch at all.
        """
        source, kept = self.sources[split]
        pieces = [np.arange(low, min(low + self.eval_batch_size, len(kept)))
                  for low in self.eval_starts(split, rank, world_size)]
        requests = [BoxRequest(split, piece, [View(self.test_side, False)] * len(piece)) for piece in pieces]
        for piece, examples in zip(pieces, self._read(requests), strict=True):
            batch = self._batch(source, kept[piece], examples)
            yield batch | {"truth": [source.truth[source.annotations[one].image_id] for one in kept[piece]]}

    def _views(self, passes, index):
        return draw_views(self.seed, passes, index, self.sides, self.flip)

    def _canvas(self, epoch, step):
        """The least (height, width) that holds all images of a global batch: on every rank they get equal padding."""
        passes, index = self.order.batch((epoch - 1) * self.num_batches + step)
        source, kept = self.sources["train"]
        sizes = [resized(*map(int, source.sizes[position]), view.short, self.longest)
                 for position, view in zip(kept[index], self._views(passes, index), strict=True)]
        return tuple(map(max, zip(*sizes, strict=True)))

    def _piece(self, epoch, step, rank, world_size):
        passes, index = self.order.batch((epoch - 1) * self.num_batches + step)
        return np.array_split(passes, world_size)[rank], np.array_split(index, world_size)[rank]

    def _updates(self, step):
        """Number of batches in the update to which a step belongs."""
        first = step - step % self.accumulate
        return min(self.accumulate, self.num_batches - first)

    def _read(self, requests):
        for batch in self.workers.read(requests):
            yield unpacked(self._upload(batch["pixels"]), self._upload(batch["boxes"]), batch["shapes"].tolist())

    def _upload(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _batch(self, source, positions, examples):
        targets = []
        for position, (_, boxes) in zip(positions, examples, strict=True):
            annotation = source.annotations[position]
            targets.append({"boxes": boxes, "labels": self._upload(torch.from_numpy(annotation.labels)),
                            "image_id": annotation.image_id, "size": tuple(map(int, source.sizes[position]))})
        return {"image": [pixels for pixels, _ in examples], "target": targets}
