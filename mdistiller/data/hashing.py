"""Random numbers that are functions of their purpose and do not depend on earlier random numbers.

A number is the hash of (seed, stream, epoch, index of the sample, number of the draw) by splitmix64 (Steele, Lea &
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), vectorised over samples. Therefore the order of
batches, ranks, workers and resuming do not change an augmentation.
"""

import numpy as np

# One stream for each purpose, so that purposes do not share numbers. Changing a value changes the results of runs.
ORDER, WEAK_VIEW, STRONG_VIEW, STRONG_OPERATIONS, SPLIT, DETECTION_VIEW, DETECTION_SAMPLING, CANVAS = range(8)

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, the step of splitmix64
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, a bijection: uint64 array -> uint64 array of the same shape."""
    state = (state ^ (state >> _SHIFT_1)) * _FACTOR_1
    state = (state ^ (state >> _SHIFT_2)) * _FACTOR_2
    return state ^ (state >> _SHIFT_3)


def random_bits(seed: int, stream: int, epoch: int | np.ndarray, index, count: int = 1) -> np.ndarray:
    """Uniform uint64 (n, count); row i depends only on sample index[i]. `index` has n integers >= 0.

    `epoch` is an integer, or an array of one for each sample.
    """
    key = np.zeros(1, np.uint64)
    for word in (seed & _WORD, stream, epoch):
        key = splitmix64((key ^ np.asarray(word).astype(np.uint64)) + np.uint64(_GOLDEN))
    index = np.asarray(index).astype(np.uint64)
    sample = splitmix64(key + (index + np.uint64(1)) * np.uint64(_GOLDEN))
    steps = np.array([(draw + 1) * _GOLDEN & _WORD for draw in range(count)], np.uint64)
    return splitmix64(sample[:, None] + steps)


def uniform(bits: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1), from the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: np.ndarray, limit: int) -> np.ndarray:
    """uint64 -> int64 in 0..limit-1, from the upper 32 bits; uniform up to a relative error of limit / 2**32."""
    return ((bits >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: (size,) int64, a permutation of 0..size-1."""
    return np.argsort(random_bits(seed, ORDER, epoch, np.arange(size))[:, 0], kind="stable")
