"""Teacher logits by view, epoch and image: for augmentations that never repeat, and for methods with several views.

Every augmentation is a function of (data seed, epoch, index), so the teacher's logits of any view can be stored under
(view, epoch, index) and are found by every method, student and seed with the same DATASET.SEED. A replay store is a
folder with one `LogitStore` for each view and epoch:

    metadata.json          what the rows are and how they were computed
    image_0001, ...        the logits of the view "image" in epoch 1, by index; image_strong_0001, ...

The teacher processes the batches of the run itself, and a row that is missing from a batch is computed in a pass of the
same number of images (filled up by repeating images) as in the batch of the run that made the store of the epoch.
Therefore the results of a run do not depend on which rows were stored before. With float32 and TOPK 0, rows are to the
bit those of a live teacher in one process with the batch size of the run that made the store; float16 differs by at
most 2**-11 of each logit.
"""

import collections
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.hashing import permutation
from mdistiller.data.images import upload
from mdistiller.engine.cache.logit_cache import LogitCache, native
from mdistiller.engine.cache.logit_store import (
    ENTRY,
    FORMAT,
    LogitStore,
    check_metadata,
    read_metadata,
    remedy,
    say_unwritable,
    unusable,
)
from mdistiller.engine.cache.rows import Rows
from mdistiller.errors import RunError, UserError
from mdistiller.files import write_text

KIND = "replay"
PART = re.compile(r"(?P<view>\w+)_(?P<epoch>\d{4,9})")  # name of the folder of a view in an epoch
SAMPLED_PARTS = 4  # stores of a view and an epoch from which rows are compared with the teacher


class ReplayStore:
    """A folder of stores, one for each view and epoch (see the module's docstring)."""

    def __init__(self, folder: Path, metadata: dict):
        """Open or create the folder. `metadata` are those of the store of an epoch (see `LogitStore`), with `kind`.

        Raises the error of `unusable`, and UserError when the folder holds rows with another `key`.
        """
        self.writable = True  # until a row of any epoch cannot be written
        self._said = False  # whether the log says that the store cannot be written to
        self.folder, self.metadata = Path(folder), metadata
        check_metadata(self.folder, metadata)
        self._create()

    def _create(self):
        found = read_metadata(self.folder)
        if found is None:
            try:
                write_text(self.folder / "metadata.json", json.dumps({"format": FORMAT, **self.metadata}, indent=1))
            except (OSError, RunError) as error:
                raise unusable(self.folder, error) from error
        elif (found.get("kind"), found.get("key")) != (KIND, self.metadata["key"]):
            raise UserError(f"{self.folder}: holds logits of something else; {remedy(self.folder)}")

    def open(self, view: str, epoch: int) -> LogitStore:
        """The store of a view in an epoch, which is created if it does not exist."""
        self._create()  # it may have been deleted meanwhile
        metadata = {name: value for name, value in self.metadata.items() if name not in ("format", "kind")}
        key = metadata["key"] | {"view": view, "epoch": epoch}
        part = LogitStore(part_of(self.folder, view, epoch), metadata | {"key": key}, part=True)
        if not (part.writable or self._said):
            say_unwritable(self.folder)
            self._said = True
        return part

    def parts(self) -> dict[Path, tuple[str, int]]:
        """{folder: (view, epoch)} of all stores of an epoch, ordered by name."""
        found = {folder: PART.fullmatch(folder.name) for folder in sorted(self.folder.iterdir())}
        return {folder: (name["view"], int(name["epoch"])) for folder, name in found.items()
                if name and read_metadata(folder)}

    @property
    def num_held(self) -> int:
        """Number of all stored rows."""
        return sum(map(count_records, self.parts()))

    count = num_held

    @property
    def words(self) -> str:
        """The number of epochs with stored rows, for a line that describes the store."""
        views = collections.Counter(view for view, _ in self.parts().values())
        return "".join(f", {number} epochs of {view}" for view, number in sorted(views.items()))

    @property
    def num_records(self) -> int:
        """Number of rows of the epochs that have a store."""
        return len(self.parts()) * self.metadata["num_records"]

    def damaged(self) -> int:
        """The number of rows with a wrong checksum; reads all rows."""
        number = 0
        for folder in self.parts():
            with contextlib.closing(LogitStore(folder, read_metadata(folder), part=True)) as part:
                number += part.damaged()
        return number


def count_records(folder: Path) -> int:
    """Number of records of a `LogitStore`, from the length of its file of entries; 0 if there is none."""
    try:
        return (folder / "entries.bin").stat().st_size // ENTRY.itemsize
    except OSError:
        return 0


def parts_of_run(folder: Path, data, epochs: int, views: Iterable[str]) -> list[Path]:
    """The folders of the stores of a replay store that the first `epochs` epochs of a run read."""
    if not epochs:
        return []
    last, _ = next(data.train_index(epochs, start=data.num_batches - 1))  # with SOLVER.MAX_ITER, of the data
    return [part_of(folder, view, epoch) for view in views for epoch in range(1, last + 1)]


def part_of(folder: Path, view: str, epoch: int) -> Path:
    """The folder of the store of a view in an epoch."""
    return folder / f"{view}_{epoch:04d}"


class ReplayCache(LogitCache):
    """Teacher logits of the views of training images in each epoch (see the module's docstring)."""

    def __init__(self, store: ReplayStore, data, logits_of: Callable[[Tensor], Tensor], rows: Rows, views: tuple):
        """`views` are those of the method, such as ("image", "image_strong")."""
        super().__init__(store, data, logits_of, rows)
        self.views = tuple(views)
        self._open = {}  # view -> (epoch, its store, the images of the epoch's last, smaller pass)

    def num_rows(self, epochs: int) -> int:
        """Number of rows that the first `epochs` epochs of a run read."""
        return len(self.views) * sum(len(index) for epoch in range(1, epochs + 1)
                                     for _, index in self.data.train_index(epoch))

    def attach(self, batches: Iterable[dict], epoch: int, **place: int) -> Iterator[dict]:
        """Yield the batches of an epoch with `logits_teacher` added: (V, B, C) for V views, (B, C) for one.

        `place` as for `train_batches`.
        """
        for batch, (own, index) in zip(batches, self.data.train_index(epoch, **place), strict=True):
            logits = [self._logits(view, own, index, batch[view]) for view in self.views]
            yield batch | {"logits_teacher": torch.stack(logits) if len(logits) > 1 else logits[0]}
        self.flush(wait=True)

    def _logits(self, view, epoch, index, images):
        store, last = self._store_of(view, epoch)
        chunk = store.metadata["chunk"]

        def compute(missing):
            size = np.where(np.isin(index[missing], last), len(last), chunk)
            logits = torch.empty(len(missing), self.rows.num_classes, device=self.device)
            for number in np.unique(size):
                part = np.flatnonzero(size == number)
                logits[upload(part, self.device)] = self.compute(images, missing[part], int(number)).float()
            return logits

        return self.look_up(store, index, compute)

    def _store_of(self, view, epoch):
        if self._open.get(view, (None,))[0] != epoch:
            if view in self._open:
                self.flush(wait=True)
                self._open.pop(view)[1].close()
            store, total = self.store.open(view, epoch), self.data.info.num_train
            last = permutation(self.data.seed, epoch, total)[total - total % store.metadata["chunk"] :]
            self._open[view] = epoch, store, last
        return self._open[view][1:]

    def compute(self, images: Tensor, positions: np.ndarray, size: int) -> Tensor:
        """The teacher's logits (m, C) of images (B, 3, H, W) at `positions` (m,), `size` images at a time."""
        number = len(positions)
        where = np.resize(positions, -(-number // size) * size)
        if not np.array_equal(where, np.arange(len(images))):
            # indexed in channels-last order, in which the images of a batch lie: another order rounds differently
            images = images.permute(0, 2, 3, 1)[upload(where, images.device)].permute(0, 3, 1, 2)
        return torch.cat([self.logits_of(part) for part in images.split(size)])[:number]

    def samples(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        parts = list(self.store.parts().values())
        rng = np.random.default_rng(len(parts))
        parts = [parts[number] for number in rng.permutation(len(parts))[: min(SAMPLED_PARTS, count)]]
        for number, (view, epoch) in enumerate(parts):
            with contextlib.closing(self.store.open(view, epoch)) as store:
                held = store.held()
                share = count // len(parts) + (number < count % len(parts))
                values, found = store.read(chosen := rng.choice(held, min(share, len(held)), replace=False))
            if found.any():
                images = self.data.views_at(epoch, chosen[found], (view,))[view]
                live = torch.cat([self.logits_of(part) for part in images.split(self.data.batch_size)])
                yield torch.from_numpy(native(values[found])), live.cpu()

    def fill(self, epochs: Iterable[int]) -> Iterator[int]:
        """Compute and store the missing rows that these epochs of a run read, all views.

        Yields the number of rows done after every batch.
        """
        for epoch in epochs:
            own = list(self.data.train_index(epoch))
            numbers = {number for number, _ in own}
            if all(count_records(part_of(self.store.folder, view, number)) >= self.data.info.num_train
                   for view in self.views for number in numbers):
                yield len(self.views) * sum(len(index) for _, index in own)
                continue
            for batch in self.attach(self.data.train_batches(epoch, views=self.views), epoch):
                yield len(self.views) * len(batch["index"])
