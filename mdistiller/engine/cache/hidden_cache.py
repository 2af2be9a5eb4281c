"""Last hidden states of a language model stored on disk; the model's head computes the logits from them.

A row is the input of the teacher's head at one supervised token: D values instead of V logits (85 times fewer for
SmolLM2-135M, 31 times for GPT-2 XL). The teacher always processes one sequence at a time, without padding, and rows are
always rounded to TEACHER_CACHE.DTYPE before they are used, whether they were stored or just computed. The results of a
run therefore do not depend on the content of the cache. Compared with a teacher without cache, logits differ by the
rounding of the hidden states (float16: 2**-11 of each value) and by the effect of padding on rounding.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.images import upload
from mdistiller.engine.cache.logit_cache import native
from mdistiller.engine.cache.logit_store import LogitStore, disagreement, in_range, summary

WHAT = "last hidden states at supervised tokens"


def hidden_metadata(metadata: dict, data, width: int) -> dict:
    """The metadata of a store of logits (see `teacher_cache.describe`), changed to hidden states (n, `width`)."""
    number = int(data.tokens.sum())
    key = metadata["key"] | {"rows": WHAT, "width": width}
    return metadata | {"num_entries": number, "num_records": number, "num_classes": width, "chunk": 1, "key": key}


class HiddenCache:
    """Hidden states of a teacher at the supervised tokens of training examples (see the module's docstring)."""

    def __init__(self, store: LogitStore, data, hidden_of: Callable[[dict], Tensor]):
        """`hidden_of` maps a batch to the teacher's rows (n, D), in eval mode and without gradient."""
        self.store, self.data, self.hidden_of = store, data, hidden_of
        self.first = np.concatenate([[0], np.cumsum(data.tokens)])  # entry number of each example's first token
        self.dtype = getattr(torch, store.metadata["dtype"])
        self.lookups = self.misses = 0

    def attach(self, batches: Iterable[dict], epoch: int, **place: int) -> Iterator[dict]:
        """Yield the batches of an epoch with `hidden_teacher` (n, D) added; `place` as for `train_batches`."""
        for batch, (index, _) in zip(batches, self.data.train_views(epoch, **place), strict=True):
            yield batch | {"hidden_teacher": self.rows(index)}

    def rows(self, index: np.ndarray) -> Tensor:
        """Rows (n, D), float32 on the device, of all supervised tokens of training examples (B,), in their order."""
        pieces = [self._entries(number) for number in index]
        values, found = self.store.read(np.concatenate(pieces))
        self.lookups, low = self.lookups + len(found), 0
        for number, entries in zip(index, pieces, strict=True):
            part = slice(low, low + len(entries))
            low += len(entries)
            if not found[part].all():
                computed = self.compute(number)
                self.misses += len(entries)
                self.store.write(entries, computed)
                values[part] = computed
        return upload(native(values), self.data.device).float()

    def compute(self, number: int) -> np.ndarray:
        """Rows (n, D) of one training example, computed by the teacher, in the dtype of the store."""
        values = self.hidden_of(self.data.batch("train", np.array([number]), fixed=False)).to(self.dtype).cpu().numpy()
        return in_range(values, "hidden states")

    def _entries(self, number):
        return np.arange(self.first[number], self.first[number + 1])

    def check(self, count: int, rounding: float) -> int:
        """Compare stored rows of the examples of `count` random rows with the teacher; returns the number compared.

        `rounding` is the allowed difference of two computations, relative to the largest magnitude of a row. Raises
        UserError when a row differs by more.
        """
        held = self.store.held()
        if not count or not len(held):
            return 0
        chosen = np.random.default_rng(len(held)).choice(held, min(count, len(held)), replace=False)
        wrong = checked = 0
        for number in np.unique(np.searchsorted(self.first, chosen, side="right") - 1):
            stored, found = self.store.read(self._entries(number))
            stored, live = stored[found].astype(np.float64), self.compute(number)[found].astype(np.float64)
            allowed = (torch.finfo(self.dtype).eps + rounding) * np.abs(live).max(axis=1, keepdims=True)
            wrong += int((~(np.abs(stored - live) <= allowed).all(axis=1)).sum())
            checked += len(live)
        if wrong:
            raise disagreement(self.store.folder, wrong, checked)
        return checked

    def fill(self, epochs: Iterable[int] | None = None) -> Iterator[int]:
        """Compute and store all missing rows; every epoch reads all examples, so `epochs` has no effect.

        Yields the number of examples done in each step.
        """
        for number in range(len(self.data.tokens)):
            self.rows(np.array([number]))
            yield 1

    def summary(self) -> str:
        """One line with the numbers of rows that this process found and computed."""
        return summary(self.lookups, self.misses, self.store.count)
