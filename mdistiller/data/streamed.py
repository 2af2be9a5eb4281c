"""Data sets of large images, decoded and cropped in worker processes, augmented and normalised on the device."""

import hashlib
import os
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from yacs.config import CfgNode

from mdistiller.data.base import Data
from mdistiller.data.crops import CROP_DRAWS, middle_crop, random_resized_crop, transforms
from mdistiller.data.files import ImageFiles, open_image, problem_of, quick_check, sound_positions
from mdistiller.data.hashing import STRONG_VIEW, WEAK_VIEW, random_bits, uniform
from mdistiller.data.splits import train_val_positions
from mdistiller.data.strong import strong_augment
from mdistiller.errors import RunError, UserError, first_line
from mdistiller.workers import begin, dead_workers_fail_the_run, leave_signals_to_the_parent

PATIENCE = 900  # seconds to wait for a batch before the workers are considered dead
STREAMS = {"image": WEAK_VIEW, "image_strong": STRONG_VIEW}


class StreamedData(Data):
    """Batches of images that are too large for memory, from files of two splits.

    Each rank has DATASET.NUM_WORKERS processes (0: none), each of which decodes and crops one batch at a time. Images
    are moved to the device as uint8, where `strong_augment` changes the strong view and all views are normalised.
    Crops are those of `crops.py` with DATASET.IMAGE_SIZE, without flips for DATASET.AUGMENTATION "crop". The
    fingerprint is made from names, file sizes and labels, because reading all pixels of ImageNet takes too long.
    """

    def __init__(self, train: ImageFiles, test: ImageFiles, cfg: CfgNode, device: torch.device | str, **metadata):
        """`metadata` are name, family, mean, std and classes. Raises UserError for broken files (see `quick_check`)."""
        dataset = cfg.DATASET
        if dataset.AUGMENTATION == "rotate_flip":
            raise UserError("DATASET.AUGMENTATION: rotate_flip is for images in memory; expected crop_flip or crop")
        sets = (train, test)
        sound = sound_positions(
            sets, lambda number, position: quick_check(sets[number].path(position)), "checking", dataset.SKIP_BROKEN,
            divided=True,
        )
        train, test = (files.take(kept) for files, kept in zip(sets, sound, strict=True))
        chosen, val = train_val_positions(train.labels, dataset.TRAIN_FRACTION, dataset.VAL_FRACTION)
        held_out = {"val": train.take(val)} if len(val) else {}
        held_out["test"] = test
        self.files = {"train": train.take(chosen), **held_out}
        super().__init__(
            cfg, device, self.files["train"].labels, {split: files.labels for split, files in held_out.items()},
            num_classes=len(metadata["classes"]), image_size=dataset.IMAGE_SIZE,
            hasher=partial(fingerprint, self.files["train"]), **metadata,
        )
        self.reader = Reader(self.files, dataset.IMAGE_SIZE, self.seed, dataset.AUGMENTATION == "crop_flip")
        self.workers = Workers(self.reader, dataset.NUM_WORKERS, self.device.type == "cuda")

    def _train_images(self, epoch, order, pieces, views):
        requests = [Request("train", order[piece], epoch, views) for piece in pieces]
        for request, images in zip(requests, self.workers.read(requests), strict=True):
            batch = {"image": self._finish(images["image"])}
            if "image_strong" in views:
                strong = strong_augment(self._upload(images["image_strong"]), self.seed, epoch, request.index)
                batch["image_strong"] = self._finish(strong)
            yield batch

    def _eval_images(self, split, pieces):
        requests = [Request(split, np.arange(piece.start, piece.stop)) for piece in pieces]
        return (self._finish(images["image"]) for images in self.workers.read(requests))

    def _plain_images(self, pieces):
        requests = [Request("train", piece) for piece in pieces]
        return (self._finish(images["image"]) for images in self.workers.read(requests))

    def _upload(self, images: Tensor) -> Tensor:
        return images.to(self.home, non_blocking=True)

    def _finish(self, images):
        return super()._finish(self._upload(images))


class Workers:
    """Worker processes that make the batch `reader[request]` for each request; with `number` 0, this process does."""

    def __init__(self, reader: Dataset, number: int, pin: bool):
        self.reader, self.number, self.pin = reader, number, pin
        self._idle = []  # loaders whose workers wait for the next pass
        # Released explicitly: if the garbage collector finds a loader, each of its workers takes five seconds to end.
        weakref.finalize(self, self._idle.clear)

    def read(self, requests: list) -> Iterator[Any]:
        """The batch of each request, in order. Passes may overlap, as each has its own workers.

        Raises UserError for an image that is found broken, and RunError when a worker dies or lacks shared memory.
        """
        queue, loader = self._idle.pop() if self._idle else self._new_loader()
        queue[:] = requests
        try:
            with dead_workers_fail_the_run():
                for images in begin(loader):
                    if isinstance(images, NoSharedMemory):
                        raise RunError(
                            f"no space in /dev/shm for the batches of the data workers ({images}): enlarge it (docker "
                            "run --shm-size 8g), or set DATASET.NUM_WORKERS 0"
                        )
                    if isinstance(images, str):
                        raise UserError(f"{images}: found broken while training; restore it and continue with --resume")
                    yield images
        finally:
            self._idle.append((queue, loader))

    def _new_loader(self):
        queue = []
        loader = DataLoader(
            self.reader,
            sampler=queue,
            batch_size=None,  # a request already is a batch
            num_workers=self.number,
            persistent_workers=self.number > 0,
            timeout=PATIENCE if self.number else 0,
            pin_memory=self.pin,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # the loader draws a seed, which must not come from the run's generator
        )
        return queue, loader


def fingerprint(files: ImageFiles) -> str:
    """SHA-256 (hex) of labels, names and file sizes."""
    digest = hashlib.sha256(files.labels.astype("<i8").tobytes())
    for name in map(files.name, range(len(files))):
        size = os.stat(os.path.join(files.root, name)).st_size  # without a Path for each of a million files
        digest.update(f"{name}\0{size}\0".encode(errors="replace"))
    return digest.hexdigest()


class Request(NamedTuple):
    """A request for a batch, which a worker makes."""

    split: str
    index: np.ndarray  # (B,) positions in the split
    epoch: int | None = None  # None: no augmentation
    views: tuple[str, ...] = ("image",)


class NoSharedMemory(str):
    """The error of a worker without shared memory for a batch."""


def in_shared_memory(batch: dict[str, Tensor]) -> dict[str, Tensor] | NoSharedMemory:
    """The tensors of a batch, in a worker in shared memory, where each takes a file descriptor until it is used.

    PyTorch's queue would do the same, but only print a failure and lose the batch.
    """
    if get_worker_info() is None:
        return batch
    try:
        return {name: tensor.share_memory_() for name, tensor in batch.items()}
    except (RuntimeError, OSError) as error:
        return NoSharedMemory(first_line(error, kind=False))


class Reader(Dataset):
    """Makes batches in a worker: `Request` -> {view: (B, size, size, 3) uint8}, or a text about a broken file."""

    def __init__(self, files: dict[str, ImageFiles], size: int, seed: int, flip: bool):
        self.files, self.size, self.seed, self.flip = files, size, seed, flip

    def __getitem__(self, request: Request) -> dict[str, Tensor] | str:
        shape = (len(request.index), self.size, self.size, 3)
        batch = in_shared_memory({view: torch.empty(shape, dtype=torch.uint8) for view in request.views})
        if isinstance(batch, NoSharedMemory):
            return batch
        draws = {}
        if request.epoch is not None:
            draws = {
                view: uniform(random_bits(self.seed, STREAMS[view], request.epoch, request.index, CROP_DRAWS))
                for view in request.views
            }

        def fill(row, path):
            image = transforms().pil_to_tensor(open_image(path))
            for view, images in batch.items():
                if draws:
                    crop = random_resized_crop(image, draws[view][row], self.size, self.flip)
                else:
                    crop = middle_crop(image, self.size)
                images[row] = crop.permute(1, 2, 0)

        for row, position in enumerate(request.index):
            path = self.files[request.split].path(position)
            problem = problem_of(fill, row, path)
            if problem:
                return f"{path} ({problem})"
        return batch
