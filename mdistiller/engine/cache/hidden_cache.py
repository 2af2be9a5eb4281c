"""Last hidden states of a language model kept on disk: its head makes the logits when they are read.

A row is what the teacher's head reads at one supervised token: D values in place of the V logits (85 times fewer for
SmolLM2-135M, 31 for GPT-2 XL). What is exact: a sequence always passes alone, without padding, and its rows are
always rounded to TEACHER_CACHE.DTYPE before they are used, found or not, so that a run's numbers do not depend on what
the cache held. Against a live teacher logits differ by the rounding of the hidden states (float16: 2**-11 of each
value) and of another padding.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mdistiller.data.images import upload
from mdistiller.engine.cache.logit_store import LogitStore
from mdistiller.errors import UserError

WHAT = "last hidden states at supervised tokens"


def hidden_facts(facts: dict, data, width: int) -> dict:
    """The facts of a store of logits (see `teacher_cache.describe`) as those of hidden states (n, `width`)."""
    number = int(data.tokens.sum())
    key = facts["key"] | {"rows": WHAT, "width": width}
    return facts | {"num_entries": number, "num_records": number, "num_classes": width, "chunk": 1, "key": key}


class HiddenCache:
    """Hidden states of a teacher at the supervised tokens of training examples, see the module's text."""

    def __init__(self, store: LogitStore, data, hidden_of: Callable[[dict], Tensor]):
        """`hidden_of` maps a batch to the rows (n, D) of the teacher in eval mode, without gradient."""
        self.store, self.data, self.hidden_of = store, data, hidden_of
        self.first = np.concatenate([[0], np.cumsum(data.tokens)])  # the entry of each example's first token
        self.dtype = getattr(torch, store.facts["dtype"])
        self.lookups = self.misses = 0

    def attach(self, batches: Iterable[dict], views: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[dict]:
        """The batches with `hidden_teacher` (n, D) added; `views` holds (index, _) of each, on the host."""
        for batch, (index, _) in zip(batches, views, strict=True):
            yield batch | {"hidden_teacher": self.rows(index)}

    def rows(self, index: np.ndarray) -> Tensor:
        """Rows (n, D), float32 on the device, of the supervised tokens of training examples (B,), in their order."""
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
        return upload(values.astype(values.dtype.newbyteorder("="), copy=False), self.data.device).float()

    def compute(self, number: int) -> np.ndarray:
        """Rows (n, D) of one training example by the teacher itself, in the dtype of the store."""
        values = self.hidden_of(self.data.batch("train", np.array([number]), fixed=False)).to(self.dtype).cpu().numpy()
        if self.dtype == torch.float16 and np.isinf(values).any():
            raise UserError("TEACHER_CACHE.DTYPE: float16 cannot hold the teacher's hidden states (above 65504); use "
                            "float32")
        return values

    def _entries(self, number):
        return np.arange(self.first[number], self.first[number + 1])

    def check(self, count: int, rounding: float) -> int:
        """Compare `count` stored rows, of examples chosen at random, with the teacher; returns how many there were.

        `rounding` is how far apart two computations may be, relative to a row's largest magnitude. Raises UserError
        when a row is further off.
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
            raise UserError(f"{self.store.folder}: {wrong} of {checked} stored rows are not what the teacher gives; "
                            f"{self.store.remedy}")
        return checked

    def fill(self, epochs: Iterable[int] | None = None) -> Iterator[int]:
        """Compute and store what is missing, of all training examples whatever the `epochs`; yields how many passed."""
        for number in range(len(self.data.tokens)):
            self.rows(np.array([number]))
            yield 1

    def summary(self) -> str:
        """What the cache did for this process, in one line."""
        hits = 100 * (1 - self.misses / max(self.lookups, 1))
        return f"{hits:.1f} % of {self.lookups} rows were found, {self.misses} computed; {self.store.count} are stored"
