"""Computations on plain arrays for the figures: segments, top samples, shares, box plots, areas."""

import numpy as np

SEGMENTS = 10
TOP = 0.1  # fraction of the samples that the paper's figures call high-entropy samples
QUARTILES = 4
PIECES = 32  # of a cell of a loss surface, in each direction
SPAN = 2.0  # side of a loss surface, from -1 to 1


def segments_by(entropy: np.ndarray, number: int = SEGMENTS) -> list[np.ndarray]:
    """Indices of the samples in `number` segments of (nearly) equal size, from low to high entropy (N,).

    Samples with equal entropy keep their order.
    """
    return np.array_split(np.argsort(entropy, kind="stable"), number)


def accuracy_by_segment(entropy: np.ndarray, correct: np.ndarray, number: int = SEGMENTS) -> np.ndarray:
    """Accuracy in percent of each segment: entropy (N,), correct (N,) bool -> (number,); NaN for an empty segment."""
    means = [correct[part].mean() if len(part) else np.nan for part in segments_by(entropy, number)]
    return 100 * np.array(means)


def top_share(values: np.ndarray) -> np.ndarray:
    """(N,) bool: the round(TOP * N) samples, at least one, with the highest values."""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[: max(1, round(TOP * len(values)))]] = True
    return chosen


def first_of_classes(target: np.ndarray, classes: int, number: int) -> np.ndarray:
    """(N,) bool: the first `number` samples of each of the first `classes` classes."""
    chosen = np.zeros(len(target), bool)
    for label in range(classes):
        chosen[np.flatnonzero(target == label)[:number]] = True
    return chosen


def quartile_shares(entropy: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Share of the summed loss (N,) in each quartile of entropy (N,), low to high: (4,), in percent."""
    sums = np.array([loss[part].sum() for part in segments_by(entropy, QUARTILES)])
    return 100 * sums / sums.sum()


def box(values: np.ndarray) -> dict[str, float]:
    """Quantiles of a box plot: `low` (5 %), `q1`, `median`, `q3`, `high` (95 %)."""
    names = ("low", "q1", "median", "q3", "high")
    return dict(zip(names, np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist(), strict=True))


def area_below(surface: np.ndarray, level: float) -> float:
    """Area where a surface (n, n), on an even grid of side SPAN with bilinear interpolation, lies below `level`.

    Each cell of the grid is divided into PIECES by PIECES.
    """
    inside = (np.arange(PIECES) + 0.5) / PIECES
    a, b = inside[:, None, None, None], inside[None, :, None, None]
    corners = surface[:-1, :-1], surface[1:, :-1], surface[:-1, 1:], surface[1:, 1:]
    pieces = (1 - a) * (1 - b) * corners[0] + a * (1 - b) * corners[1] + (1 - a) * b * corners[2] + a * b * corners[3]
    return float((pieces < level).mean() * SPAN**2)


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis (divisor n - 1; NaN for a single value)."""
    values = np.asarray(values, float)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(axis=0), spread
