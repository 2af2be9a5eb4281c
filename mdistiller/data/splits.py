"""Fixed, class-balanced parts of a training set: they depend on the data alone, never on a run's seed."""

import numpy as np

from mdistiller.data.hashing import SPLIT, random_bits
from mdistiller.errors import UserError


def ranks_in_class(labels: np.ndarray) -> np.ndarray:
    """(N,) labels -> (N,) int64: the place of each sample among those of its class, in a fixed random order."""
    order = np.lexsort((random_bits(0, SPLIT, 0, np.arange(len(labels)))[:, 0], labels))
    first = np.searchsorted(labels[order], labels[order])  # where each sample's class begins
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first
    return ranks


def train_val_positions(
    labels: np.ndarray, train_fraction: float, val_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the validation images, both ascending.

    Of every class, the first `val_fraction` (rounded) in the fixed order is validation, and of the rest the first
    `train_fraction` is trained on: at least one image of every class (for validation, where it has two), and a smaller
    fraction is a part of a larger. Raises UserError for a validation part without an image.
    """
    size = np.bincount(labels)[labels]  # of each sample's class
    val = np.minimum(np.maximum(np.rint(val_fraction * size), val_fraction > 0), size - 1)
    if val_fraction and not val.any():
        raise UserError(f"DATASET.VAL_FRACTION: {val_fraction}: no class has two images, so none can be kept apart")
    train = np.maximum(np.rint(train_fraction * (size - val)), 1)
    rank = ranks_in_class(labels)
    return np.flatnonzero((rank >= val) & (rank < val + train)), np.flatnonzero(rank < val)
