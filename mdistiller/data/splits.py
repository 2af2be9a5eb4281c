"""Fixed, class-balanced parts of a training set, which depend only on the data and not on the seed of a run."""

import numpy as np

from mdistiller.data.hashing import SPLIT, random_bits
from mdistiller.errors import UserError


def ranks_in_class(labels: np.ndarray) -> np.ndarray:
    """The rank of each sample within its class, in a fixed random order: labels (N,) -> (N,) int64."""
    order = np.lexsort((random_bits(0, SPLIT, 0, np.arange(len(labels)))[:, 0], labels))
    first = np.searchsorted(labels[order], labels[order])  # start of each sample's class
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first
    return ranks


def train_val_positions(
    labels: np.ndarray, train_fraction: float, val_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the validation images, both ascending.

    In the fixed order of each class, the first images, a fraction of `val_fraction`, are for validation, and of the
    others the first, a fraction of `train_fraction`, are for training. Every class has at least one training image and,
    if it has two images, at least one validation image (with a `val_fraction` above 0). A smaller fraction is a subset
    of a larger one. Raises UserError if there is no validation image.
    """
    size = np.bincount(labels)[labels]  # size of each sample's class
    val = np.minimum(np.maximum(np.rint(val_fraction * size), val_fraction > 0), size - 1)
    if val_fraction and not val.any():
        raise UserError(f"DATASET.VAL_FRACTION: {val_fraction}: no class has two images, so there are none for it")
    train = np.maximum(np.rint(train_fraction * (size - val)), 1)
    rank = ranks_in_class(labels)
    return np.flatnonzero((rank >= val) & (rank < val + train)), np.flatnonzero(rank < val)
