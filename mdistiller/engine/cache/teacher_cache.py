"""Teacher logits stored on disk: the teacher processes each view of each image only once for all runs.

Padded crop and flip give 162 views of an image, and the view of each sample in an epoch is known in advance. The logits
of several batches are therefore looked up together; missing ones are computed together and stored. A value is always
rounded to TEACHER_CACHE.DTYPE before it is used, whether it was stored or just computed, and is always computed in a
forward pass of the same number of images (`chunk`, filled up by repeating images). Kernels treat all rows of a batch of
a given size alike, so that the results of a run do not depend on the content of the cache. Compared with a teacher
without a cache, float16 differs by at most 2**-11 of each logit, float32 by the rounding of another batch size.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller import distributed
from mdistiller.config.length import num_epochs
from mdistiller.data.images import NUM_VIEWS, upload
from mdistiller.engine.cache import replay
from mdistiller.engine.cache.hidden_cache import HiddenCache, hidden_metadata
from mdistiller.engine.cache.logit_cache import LogitCache, native
from mdistiller.engine.cache.logit_store import ENTRY, FORMAT, LogitStore, read_metadata, record_bytes
from mdistiller.engine.cache.replay import ReplayCache, ReplayStore
from mdistiller.engine.cache.rows import Rows
from mdistiller.engine.checkpoints import state_sha256
from mdistiller.errors import UserError
from mdistiller.models.language import Tokens
from mdistiller.precision import autocast, teacher_amp

LOOK_AHEAD = 8  # samples are looked up together for this many forward passes; only the last one repeats images
# Allowed difference of two computations of a row, relative to its largest magnitude, in addition to storage rounding
ROUNDING = {"none": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
ROUNDING_CUDA = 1e-2  # convolutions in TF32
log = logging.getLogger("mdistiller")


def why_live(distiller, data, kind: str = "views") -> str | None:
    """The reason why a distiller's teacher must run in every step on this data; None if its outputs can be stored.

    `kind` is TEACHER_CACHE.KIND.
    """
    name = distiller.method
    if distiller.inputs != "logits":
        return f"{name} reads the teacher's features"
    if distiller.teacher_mode != "eval":
        return f"{name} runs its teacher in train mode"
    if getattr(getattr(distiller, "task", None), "weighs_all_tokens", False) and distiller.weighted:
        return "EA.LEVEL prompt_and_response needs logits of tokens that are not supervised"
    if data.info.task == "detection":
        return "the teacher's logits are those of the student's proposals"
    if hasattr(data, "tokens") or kind == replay.KIND:
        return None
    remedy = "; TEACHER_CACHE.KIND replay stores them by epoch"
    if tuple(distiller.views) != ("image",):
        return f"{name} uses random views that do not repeat ({', '.join(distiller.views[1:])}){remedy}"
    if not data.views_are_finite:
        return f"the augmentation of {data.info.name} has no fixed set of views (DATASET.AUGMENTATION){remedy}"
    return None


def describe(cfg: CfgNode, data, teacher: nn.Module, teacher_sha256: str | None, device: torch.device) -> dict:
    """The metadata of the store for this teacher and data (see `LogitStore`).

    `key` contains everything that a stored value depends on.
    """
    info, cache = data.info, cfg.TEACHER_CACHE
    replayed = cache.KIND == replay.KIND
    key = {
        "format": FORMAT,
        "teacher": cfg.DISTILLER.TEACHER,
        "teacher_sha256": teacher_sha256 or state_sha256(teacher.state_dict()),
        "family": info.family,
        "input_size": cfg.DISTILLER.TEACHER_INPUT_SIZE,
        "normalization": cfg.DISTILLER.TEACHER_NORMALIZATION,
        "data": info.name,
        "fingerprint": info.fingerprint,
        "mean": list(info.mean),
        "std": list(info.std),
        "views": replay.KIND if replayed else "crop, flip" if data.flip else "crop",
        "num_classes": info.num_classes,
        "dtype": cache.DTYPE,
        "device": device.type,
        "amp": teacher_amp(cfg),
        "channels_last": cfg.SOLVER.CHANNELS_LAST,
        "compile": cfg.COMPILE,
        "fold": cfg.DISTILLER.FOLD_TEACHER,
    }
    if replayed:
        key |= {"data_seed": data.seed, "augmentation": cfg.DATASET.AUGMENTATION, "image_size": info.image_size}
    key |= {"topk": cache.TOPK} if cache.TOPK else {}
    number = info.num_train
    shape = {"num_entries": number, "num_records": number} if replayed else {
        "num_entries": number * NUM_VIEWS, "num_records": number * len(data.view_numbers)}
    chunk = -(-cfg.SOLVER.BATCH_SIZE // distributed.world_size()) if replayed else cfg.SOLVER.BATCH_SIZE
    kind = {"kind": replay.KIND} if replayed else {}
    width = rows_of(cfg, info).width
    return shape | kind | {"num_classes": width, "dtype": cache.DTYPE, "chunk": chunk, "key": key}


def rows_of(cfg: CfgNode, info) -> Rows:
    """The form of the stored rows (TEACHER_CACHE.DTYPE and TOPK)."""
    return Rows(info.num_classes, getattr(torch, cfg.TEACHER_CACHE.DTYPE), cfg.TEACHER_CACHE.TOPK)


def folder_of(directory: str | Path, key: dict) -> Path:
    """The folder of the store with this key: a readable name with a hash of the key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    kind = f"_{replay.KIND}" if key["views"] == replay.KIND else ""
    name = f"{key['data']}_{key['teacher']}_{key['dtype']}{kind}_{digest[:12]}"
    return Path(directory) / name.replace("/", "-").replace(":", "-")


def open_cache(cfg: CfgNode, data, teacher: nn.Module, teacher_sha256: str | None, device: torch.device,
               epochs: int | None = None, views: tuple = ("image",),
               create: bool = True) -> "TeacherCache | ReplayCache | HiddenCache":
    """Open or create the cache of the config's teacher (on its device, in eval mode), check it, and log its size.

    `epochs` is the number of epochs that will be read (None: those of the whole run), `views` those of the method.
    Raises UserError when the disk is too small for the rows they may add, when stored rows differ from the teacher's,
    and without `create` when there is no such cache.
    """
    hidden = hasattr(data, "tokens")  # text data: hidden states are stored instead of logits
    if hidden:
        _check_text(cfg.TEACHER_CACHE)
    rows = rows_of(cfg, data.info)
    rows.check()
    metadata = describe(cfg, data, teacher, teacher_sha256, device)
    if hidden:
        metadata = hidden_metadata(metadata, data, teacher.width)
    epochs = num_epochs(cfg.SOLVER) if epochs is None else epochs
    folder = folder_of(cfg.TEACHER_CACHE.DIR, metadata["key"])
    if not (create or read_metadata(folder)):
        raise UserError(f"TEACHER_CACHE.DIR: no cache of this config in {cfg.TEACHER_CACHE.DIR}; it would be {folder}")

    def logits_of(image):
        with torch.no_grad(), autocast(device, teacher_amp(cfg)):
            return teacher(image).logits

    def hidden_of(batch):
        with torch.no_grad(), autocast(device, teacher_amp(cfg)):
            return teacher(Tokens(batch["ids"], batch["mask"], batch["places"], batch["positions"]))

    if cfg.TEACHER_CACHE.KIND == replay.KIND:
        wanted = replay.parts_of_run(folder, data, epochs, views)
        announce(folder, metadata, sum(map(replay.count_records, wanted)), len(wanted) * data.info.num_train)
        if cfg.DATASET.SEED is None:
            log.info("teacher cache: runs with another EXPERIMENT.SEED share it only if DATASET.SEED is set")
        cache = ReplayCache(ReplayStore(folder, metadata), data, logits_of, rows, views)
    else:
        passes = epochs * data.num_batches / math.ceil(data.info.num_train / cfg.SOLVER.BATCH_SIZE)  # over the images
        lookups = int(data.tokens.sum()) if hidden else math.ceil(passes * data.info.num_train)
        held = replay.count_records(folder) if read_metadata(folder) else 0
        announce(folder, metadata, held, metadata["num_records"], lookups)
        store = LogitStore(folder, metadata)
        cache = HiddenCache(store, data, hidden_of) if hidden else TeacherCache(store, data, logits_of, rows)
    rounding = ROUNDING[teacher_amp(cfg)]
    checked = cache.check(cfg.TEACHER_CACHE.CHECK, max(rounding, ROUNDING_CUDA) if device.type == "cuda" else rounding)
    if checked:
        log.info("teacher cache: %d stored rows, chosen at random, agree with the teacher", checked)
    return cache


def _check_text(settings):
    """Raise UserError for settings that are for images only."""
    if settings.KIND == replay.KIND:
        raise UserError("TEACHER_CACHE.KIND: replay is for augmented images, text has no augmentation; expected views")
    if settings.TOPK:
        raise UserError(f"TEACHER_CACHE.TOPK: hidden states are stored whole; expected 0, found {settings.TOPK}")


def announce(folder: Path, metadata: dict, held: int, total: int, lookups: int | None = None) -> None:
    """Log the current size of a store, `held` of `total` rows, and the possible one after `lookups` (None: all).

    Raises UserError when the disk is too small.
    """
    size = record_bytes(metadata["num_classes"], metadata["dtype"])
    growth = min(total if lookups is None else lookups, total - held) * (size + ENTRY.itemsize)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    log.info("teacher cache: %s holds %d of %d rows in %s (%s when full); this run may add %s, %s are free",
             folder, held, total, in_bytes(held * size), in_bytes(total * size), in_bytes(growth), in_bytes(free))
    if growth > free and os.access(parent, os.W_OK):
        smaller = "; TEACHER_CACHE.DTYPE float16 takes half" if metadata["dtype"] == "float32" else ""
        smaller += "" if metadata["key"].get("topk") else "; TEACHER_CACHE.TOPK stores the largest logits only"
        raise UserError(
            f"TEACHER_CACHE.DIR: {folder} may grow by {in_bytes(growth)}, {in_bytes(free)} are free; set a folder on "
            f"a larger disk, or set TEACHER_CACHE.ENABLED False{smaller}"
        )


def in_bytes(number: int) -> str:
    """A number of bytes as text, such as "1.65 GB" (decimal units)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number / 1e3:.1f} kB"


class TeacherCache(LogitCache):
    """Teacher logits of training images in a finite set of views; entries are pairs of image and view."""

    def __init__(self, store: LogitStore, data, logits_of: Callable[[Tensor], Tensor], rows: Rows):
        super().__init__(store, data, logits_of, rows)
        self.chunk = store.metadata["chunk"]

    def attach(self, batches: Iterable[dict], epoch: int, **place: int) -> Iterator[dict]:
        """Yield the batches of an epoch with `logits_teacher` (B, C) added; `place` as for `train_batches`."""
        batches, waiting, samples = iter(batches), [], 0
        for pair in self.data.train_views(epoch, **place):
            waiting.append(pair)
            samples += len(pair[0])
            if samples >= LOOK_AHEAD * self.chunk:
                yield from self._together(batches, waiting)
                waiting, samples = [], 0
        if waiting:
            yield from self._together(batches, waiting)
        self.flush(wait=True)

    def _together(self, batches, waiting):
        rows = self.logits(*(np.concatenate(arrays) for arrays in zip(*waiting, strict=True)))
        for logits in rows.split([len(index) for index, _ in waiting]):
            yield next(batches) | {"logits_teacher": logits}

    def logits(self, index: np.ndarray, view: np.ndarray) -> Tensor:
        """Teacher logits (n, C), float32 on the device, of training images `index` (n,) in views `view` (n,)."""
        compute = lambda missing: self.compute(index[missing], view[missing])  # noqa: E731
        return self.look_up(self.store, index * NUM_VIEWS + view, compute)

    def compute(self, index: np.ndarray, view: np.ndarray) -> Tensor:
        """Logits (n, C) computed by the teacher, `chunk` images at a time."""
        number = -(-len(index) // self.chunk) * self.chunk
        where = upload(np.stack([np.resize(index, number), np.resize(view, number)]), self.data.home)
        pieces = [self.logits_of(self.data.image_at(*piece)) for piece in where.split(self.chunk, dim=1)]
        return torch.cat(pieces)[: len(index)]

    def samples(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        entries = self.store.held()
        entries = np.random.default_rng(len(entries)).choice(entries, min(count, len(entries)), replace=False)
        values, found = self.store.read(entries)
        entries = entries[found].astype(np.int64)
        if len(entries):
            live = self.compute(entries // NUM_VIEWS, entries % NUM_VIEWS)
            yield torch.from_numpy(native(values[found])), live.cpu()

    def fill(self, epochs: Iterable[int] | None = None) -> Iterator[int]:
        """Compute and store missing rows of all views of all images, or only those that these epochs of a run read.

        Yields the number of entries done after every few forward passes.
        """
        for entries in self._wanted(epochs):
            missing = entries[~self.store.read(entries)[1]]
            step = LOOK_AHEAD * self.chunk
            for first in range(0, len(missing), step):
                part = missing[first : first + step]
                self.logits(part // NUM_VIEWS, part % NUM_VIEWS)
                self.flush(wait=True)
                yield len(part)
            yield len(entries) - len(missing)

    def _wanted(self, epochs):
        if epochs is None:
            for view in self.data.view_numbers:
                yield np.arange(self.data.info.num_train) * NUM_VIEWS + view
        else:
            for epoch in epochs:
                index, view = (np.concatenate(arrays) for arrays in zip(*self.data.train_views(epoch), strict=True))
                yield index * NUM_VIEWS + view
