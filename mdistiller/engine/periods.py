"""Runs whose length is counted in updates: an "epoch" of such a run is a fixed number of updates (a period)."""

from collections.abc import Iterator, Sequence

import numpy as np
from yacs.config import CfgNode

from mdistiller.config.length import num_epochs
from mdistiller.errors import UserError


def in_periods(data, solver: CfgNode):
    """The data unchanged, or, with SOLVER.MAX_ITER, divided into periods of SOLVER.EVAL_PERIOD updates.

    Raises UserError when the accumulated batches of one update would cross the end of an epoch of the data.
    """
    if not solver.MAX_ITER:
        return data
    if data.num_batches % solver.ACCUMULATE:
        raise UserError(
            f"SOLVER.ACCUMULATE: with SOLVER.MAX_ITER expected a divisor of the {data.num_batches} batches of an "
            f"epoch; found {solver.ACCUMULATE}"
        )
    return Periods(data, solver.MAX_ITER // num_epochs(solver) * solver.ACCUMULATE)


class Periods:
    """Data whose epochs (periods) are `num_batches` consecutive batches of the repeated epochs of `data`.

    Order and augmentation are those of the epochs of `data`; all other attributes are passed through.
    """

    def __init__(self, data, num_batches: int):
        self._data, self.num_batches = data, num_batches

    def __getattr__(self, name):
        return getattr(self._data, name)

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of period number `epoch` (from 1), beginning with batch `start`; else as the data's method."""
        for own, first, number in self._parts(epoch, start):
            batches = self._data.train_batches(own, views=views, start=first, rank=rank, world_size=world_size)
            yield from (batch for _, batch in zip(range(number), batches, strict=False))

    def train_views(
        self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(index, view), both (B,), of each batch that `train_batches` with the same arguments yields."""
        for own, first, number in self._parts(epoch, start):
            pairs = self._data.train_views(own, start=first, rank=rank, world_size=world_size)
            yield from (pair for _, pair in zip(range(number), pairs, strict=False))

    def train_index(
        self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch of the data, index (B,)) of each batch that `train_batches` with the same arguments yields."""
        for own, first, number in self._parts(epoch, start):
            pairs = self._data.train_index(own, start=first, rank=rank, world_size=world_size)
            yield from (pair for _, pair in zip(range(number), pairs, strict=False))

    def batch_index(self, epoch: int, step: int) -> np.ndarray:
        """Dataset indices (B,) of the samples of the global batch number `step` of a period."""
        own, first, _ = next(self._parts(epoch, step))
        return self._data.batch_index(own, first)

    def _parts(self, period, start):
        """Yield (epoch of the data, first batch, number of batches) for a period's batches from `start` on."""
        place, end = (period - 1) * self.num_batches + start, period * self.num_batches
        while place < end:
            epoch, first = divmod(place, self._data.num_batches)
            number = min(self._data.num_batches - first, end - place)
            yield epoch + 1, first, number
            place += number
