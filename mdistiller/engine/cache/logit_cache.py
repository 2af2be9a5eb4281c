"""What caches of a teacher's logits share: rows are read from stores, and missing ones are computed and stored."""

import collections
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.images import upload
from mdistiller.engine.cache.logit_store import LogitStore, disagreement, in_range, summary
from mdistiller.engine.cache.rows import Rows
from mdistiller.functional import entropy, softened_kl

TEMPERATURES = (1, 3, 4)  # of probabilities, of the entropies for sample weights, and the usual one of distillation


class LogitCache:
    """Teacher logits of training samples, read from stores or, if missing there, computed by the teacher.

    Subclasses define `attach`, `fill` and `samples`. A row is always packed and unpacked (see `Rows`) before it is
    used, whether it was stored or just computed. Nothing here waits for the device.
    """

    def __init__(self, store, data, logits_of: Callable[[Tensor], Tensor], rows: Rows):
        """`logits_of` maps images (B, 3, H, W) to the teacher's logits (B, C), in eval mode and without gradient."""
        self.store, self.data, self.logits_of, self.rows = store, data, logits_of, rows
        self.device = data.device
        self.lookups = self.misses = 0
        self._arriving = collections.deque()  # computed rows that are being copied to CPU memory

    def look_up(self, store: LogitStore, entries: np.ndarray, compute: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Logits (n, C), float32 on the device, of entries (n,) of a store.

        `compute` maps the positions (m,) of missing ones among them to their logits (m, C), which are then stored.
        """
        self.flush()
        stored, found = store.read(entries)
        missing = np.flatnonzero(~found)
        self.lookups, self.misses = self.lookups + len(entries), self.misses + len(missing)
        logits = self.rows.unpack(upload(native(stored), self.device))
        if len(missing):
            computed = self.rows.pack(compute(missing))
            logits.index_copy_(0, upload(missing, self.device), self.rows.unpack(computed))
            self._keep(store, entries[missing], computed)
        return logits

    def _keep(self, store, entries, computed):
        if computed.device.type != "cuda":
            return self._store(store, entries, computed)
        pinned = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)
        pinned.copy_(computed, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._arriving.append((event, store, entries, pinned))

    def flush(self, wait: bool = False) -> None:
        """Store the computed rows that have arrived in CPU memory; with `wait`, all computed rows."""
        while self._arriving and (wait or self._arriving[0][0].query()):
            event, store, entries, pinned = self._arriving.popleft()
            event.synchronize()
            self._store(store, entries, pinned)

    def _store(self, store, entries, computed):
        rows = computed.cpu().numpy()
        in_range(rows[:, : self.rows.num_logits], "logits")
        store.write(entries, rows)
        self.store.writable &= store.writable  # `store` may be a part of it

    def samples(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most `count` random stored rows: (rows (n, width) as stored, the teacher's logits (n, C)), on the CPU."""
        raise NotImplementedError

    def check(self, count: int, rounding: float) -> int:
        """Compare at most `count` random stored rows with the teacher; returns the number of compared rows.

        `rounding` is the allowed difference of two computations, relative to the largest magnitude of a row. Raises
        UserError when a row differs by more.
        """
        wrong = checked = 0
        for rows, live in self.samples(count):
            held, expected = self.rows.beside(rows, live)
            allowed = (torch.finfo(self.rows.dtype).eps + rounding) * live.double().abs().amax(dim=1, keepdim=True)
            wrong += int((~((held - expected).abs() <= allowed).all(dim=1)).sum())
            checked += len(live)
        if wrong:
            raise disagreement(self.store.folder, wrong, checked)
        return checked

    def error(self, count: int) -> str:
        """A text about the difference between at most `count` random stored rows and the teacher's logits.

        It has the share of rows with the same largest class and, for each of `TEMPERATURES`, means over the rows: the
        KL divergence from the teacher to the row, and the absolute difference of the entropies, in nats.
        """
        pairs = list(self.samples(count))
        if not pairs:
            return ""
        rows, live = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        stored, live = self.rows.unpack(rows).double(), live.double()
        same = 100 * (stored.argmax(dim=1) == live.argmax(dim=1)).double().mean()
        words = [f"the same first class in {same:.2f} %"]
        for temperature in TEMPERATURES:
            kl = softened_kl(stored, live, temperature).mean()
            apart = (entropy(stored, temperature) - entropy(live, temperature)).abs().mean()
            words.append(f"at temperature {temperature}: KL {kl:.2g} nats, entropies apart by {apart:.2g} nats")
        return "; ".join(words)

    def summary(self) -> str:
        """One line with the numbers of rows that this process found and computed."""
        return summary(self.lookups, self.misses, self.store.count)


def native(values: np.ndarray) -> np.ndarray:
    """Values in the byte order of a store (little-endian) as PyTorch needs them; a copy only on other machines."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
