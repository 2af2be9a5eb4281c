"""Teacher logits stored on disk: the teacher processes each view of each image only once for all runs.

Padded crop and flip give 162 views of an image, and the view of each sample in an epoch is known in advance. The logits
of several batches are therefore looked up together; missing ones are computed together and stored. A value is always
rounded to TEACHER_CACHE.DTYPE before it is used, whether it was stored or just computed, and is always computed in a
forward pass of the same number of images (`chunk`, filled up by repeating images). Kernels treat all rows of a batch of
a given size alike, so that the results of a run do not depend on the content of the cache. Compared with a teacher
without a cache, float16 differs by at most 2**-11 of each logit, float32 by the rounding of another batch size.
"""

import collections
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller import distributed
from mdistiller.data.images import NUM_VIEWS, upload
from mdistiller.engine.cache.hidden_cache import HiddenCache, hidden_metadata
from mdistiller.engine.cache.logit_store import ENTRY, FORMAT, LogitStore, in_range, read_metadata, record_bytes
from mdistiller.engine.checkpoints import state_sha256
from mdistiller.engine.device import autocast
from mdistiller.engine.optim import num_epochs
from mdistiller.errors import UserError
from mdistiller.models.language import Tokens

LOOK_AHEAD = 8  # samples are looked up together for this many forward passes; only the last one repeats images
# Allowed difference of two computations of a row, relative to its largest magnitude, in addition to storage rounding
ROUNDING = {"none": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
ROUNDING_CUDA = 1e-2  # convolutions in TF32
log = logging.getLogger("mdistiller")


def why_live(distiller, data) -> str | None:
    """The reason why a distiller's teacher must run in every step on this data; None if its outputs can be stored."""
    name = distiller.method
    if distiller.inputs != "logits":
        return f"{name} reads the teacher's features"
    if distiller.teacher_mode != "eval":
        return f"{name} runs its teacher in train mode"
    if tuple(distiller.views) != ("image",):
        return f"{name} uses random views that do not repeat ({', '.join(distiller.views[1:])})"
    if getattr(getattr(distiller, "task", None), "weighs_all_tokens", False) and distiller.weighted:
        return "EA.LEVEL prompt_and_response needs logits of tokens that are not supervised"
    if not data.views_are_finite:
        return f"the augmentation of {data.info.name} has no fixed set of views (DATASET.AUGMENTATION)"
    return None


def describe(cfg: CfgNode, data, teacher: nn.Module, teacher_sha256: str | None, device: torch.device) -> dict:
    """The metadata of the store for this teacher and data (see `LogitStore`).

    `key` contains everything that a stored value depends on.
    """
    info = data.info
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
        "views": "crop, flip" if data.flip else "crop",
        "num_classes": info.num_classes,
        "dtype": cfg.TEACHER_CACHE.DTYPE,
        "device": device.type,
        "amp": cfg.SOLVER.AMP,
        "channels_last": cfg.SOLVER.CHANNELS_LAST,
        "compile": cfg.COMPILE,
        "fold": cfg.DISTILLER.FOLD_TEACHER,
    }
    return {
        "num_entries": info.num_train * NUM_VIEWS,
        "num_records": info.num_train * len(data.view_numbers),
        "num_classes": info.num_classes,
        "dtype": cfg.TEACHER_CACHE.DTYPE,
        "chunk": cfg.SOLVER.BATCH_SIZE,
        "key": key,
    }


def folder_of(directory: str | Path, key: dict) -> Path:
    """The folder of the store with this key: a readable name with a hash of the key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = f"{key['data']}_{key['teacher']}_{key['dtype']}_{digest[:12]}"
    return Path(directory) / name.replace("/", "-").replace(":", "-")


def open_cache(cfg: CfgNode, data, teacher: nn.Module, teacher_sha256: str | None, device: torch.device,
               lookups: int | None = None) -> "TeacherCache | HiddenCache":
    """Open or create the cache of the config's teacher (on its device, in eval mode), check it, and log its size.

    `lookups` is the number of samples that will be read (None: those of the whole run). Raises UserError when the disk
    is too small for the rows they may add, or when stored rows differ from the teacher's.
    """
    metadata = describe(cfg, data, teacher, teacher_sha256, device)
    hidden = hasattr(data, "tokens")  # text data: hidden states are stored instead of logits
    if hidden:
        metadata, lookups = hidden_metadata(metadata, data, teacher.width), int(data.tokens.sum())
    folder = folder_of(cfg.TEACHER_CACHE.DIR, metadata["key"])
    _announce(folder, metadata, data.info.num_train * num_epochs(cfg.SOLVER) if lookups is None else lookups)

    def logits_of(image):
        with torch.no_grad(), autocast(device, cfg.SOLVER.AMP):
            return teacher(image).logits

    def hidden_of(batch):
        with torch.no_grad(), autocast(device, cfg.SOLVER.AMP):
            return teacher(Tokens(batch["ids"], batch["mask"], batch["places"], batch["positions"]))

    store = LogitStore(folder, metadata)
    cache = HiddenCache(store, data, hidden_of) if hidden else TeacherCache(store, data, logits_of)
    rounding = ROUNDING[cfg.SOLVER.AMP]
    checked = cache.check(cfg.TEACHER_CACHE.CHECK, max(rounding, ROUNDING_CUDA) if device.type == "cuda" else rounding)
    if checked and distributed.rank() == 0:
        log.info("teacher cache: %d stored rows, chosen at random, agree with the teacher", checked)
    return cache


def _announce(folder, metadata, lookups):
    """Log the current and the possible size of the store. Raises UserError when the disk is too small."""
    size = record_bytes(metadata["num_classes"], metadata["dtype"])
    held = (folder / "entries.bin").stat().st_size // ENTRY.itemsize if read_metadata(folder) else 0
    growth = min(lookups, metadata["num_records"] - held) * (size + ENTRY.itemsize)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    if distributed.rank() == 0:
        log.info(
            "teacher cache: %s holds %d of %d rows in %s (%s when full); this run may add %s, %s are free",
            folder, held, metadata["num_records"], in_bytes(held * size), in_bytes(metadata["num_records"] * size),
            in_bytes(growth), in_bytes(free),
        )
    if growth > free and os.access(parent, os.W_OK):
        smaller = "; TEACHER_CACHE.DTYPE float16 takes half" if metadata["dtype"] == "float32" else ""
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


class TeacherCache:
    """Teacher logits of training samples, read from a `LogitStore` or, if missing there, computed by the teacher."""

    def __init__(self, store: LogitStore, data, logits_of: Callable[[Tensor], Tensor]):
        """`logits_of` maps images (B, 3, H, W) to the teacher's logits (B, C), in eval mode and without gradient."""
        self.store, self.data, self.logits_of = store, data, logits_of
        self.device, self.chunk = data.device, store.metadata["chunk"]
        self.dtype = getattr(torch, store.metadata["dtype"])
        self.lookups = self.misses = 0
        self._arriving = collections.deque()  # computed rows that are being copied to CPU memory

    def attach(self, batches: Iterable[dict], views: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[dict]:
        """Yield the batches with `logits_teacher` (B, C) added; `views` holds NumPy (index, view) of each batch."""
        batches, waiting, samples = iter(batches), [], 0
        for pair in views:
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
        """Teacher logits (n, C), float32 on the device, of training images `index` (n,) in views `view` (n,).

        Does not wait for the device.
        """
        self.flush()
        entries = index * NUM_VIEWS + view
        values, found = self.store.read(entries)
        missing = np.flatnonzero(~found)
        self.lookups, self.misses = self.lookups + len(entries), self.misses + len(missing)
        logits = upload(values.astype(values.dtype.newbyteorder("="), copy=False), self.device).float()
        if len(missing):
            computed = self.compute(index[missing], view[missing])
            logits.index_copy_(0, upload(missing, self.device), computed.float())
            self._keep(entries[missing], computed)
        return logits

    def compute(self, index: np.ndarray, view: np.ndarray) -> Tensor:
        """Logits (n, C) computed by the teacher, `chunk` images at a time, in the dtype of the store."""
        number = -(-len(index) // self.chunk) * self.chunk
        where = upload(np.stack([np.resize(index, number), np.resize(view, number)]), self.data.home)
        pieces = [self.logits_of(self.data.image_at(*piece)) for piece in where.split(self.chunk, dim=1)]
        return torch.cat(pieces)[: len(index)].to(self.dtype)

    def _keep(self, entries, computed):
        if computed.device.type != "cuda":
            return self._store(entries, computed)
        pinned = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)
        pinned.copy_(computed, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._arriving.append((event, entries, pinned))

    def flush(self, wait: bool = False) -> None:
        """Store the computed rows that have arrived in CPU memory; with `wait`, all computed rows."""
        while self._arriving and (wait or self._arriving[0][0].query()):
            event, entries, pinned = self._arriving.popleft()
            event.synchronize()
            self._store(entries, pinned)

    def _store(self, entries, computed):
        self.store.write(entries, in_range(computed.cpu().numpy(), "logits"))

    def check(self, count: int, rounding: float) -> int:
        """Compare at most `count` random stored rows with the teacher; returns the number of compared rows.

        `rounding` is the allowed difference of two computations, relative to the largest magnitude of a row. Raises
        UserError when a row differs by more.
        """
        entries = self.store.held()
        if not count or not len(entries):
            return 0
        entries = np.random.default_rng(len(entries)).choice(entries, min(count, len(entries)), replace=False)
        values, found = self.store.read(entries)
        entries, stored = entries[found].astype(np.int64), torch.from_numpy(values[found].astype(np.float64))
        if not len(entries):
            return 0
        live = self.compute(entries // NUM_VIEWS, entries % NUM_VIEWS).cpu().double()
        allowed = (torch.finfo(self.dtype).eps + rounding) * live.abs().amax(dim=1, keepdim=True)
        wrong = ~((stored - live).abs() <= allowed).all(dim=1)
        if wrong.any():
            raise self.store.disagrees(int(wrong.sum()), len(entries))
        return len(entries)

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

    def summary(self) -> str:
        """One line with the numbers of rows that this process found and computed."""
        return self.store.summary(self.lookups, self.misses)
