"""The statistics of all tables: accuracies over seeds. Does not import torch.

How runs over seeds are compared follows Bouthillier et al., "Accounting for variance in machine learning benchmarks",
MLSys 2021 (arXiv:2103.03098), and Agarwal et al., "Deep reinforcement learning at the edge of the statistical
precipice", NeurIPS 2021 (arXiv:2108.13264); ranks over data sets follow Demsar, "Statistical comparisons of classifiers
over multiple data sets", JMLR 7, 2006.
"""

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mdistiller.runs.records import mean_and_std

CONFIDENCE, POWER = 0.95, 0.8
LEAST_TO_RESAMPLE = 5  # least number of differences for the bootstrap and the sign-flip test
MOST_TO_ENUMERATE = 20  # largest number of differences of the exact sign-flip test: a million sign patterns
MOST_SEEDS = 10_000  # largest answer to the question how many seeds are needed
RESAMPLES = 9999


def _special():
    """SciPy's distribution functions, imported only for tests, so that programs that only read runs start faster."""
    return importlib.import_module("scipy.special")


@dataclass(frozen=True)
class Gain:
    """A mean difference in points; interval and p-value (two-sided) are NaN where nothing can be tested."""

    mean: float
    seeds: int  # number of pairs of runs with the same seed; 0: difference of two means over different seeds
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    differences: tuple[float, ...] = field(default=(), compare=False)  # one per common seed


def paired_gain(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Gain:
    """The mean of variant - baseline over common seeds, with Student's t interval and test. Both are seed -> accuracy.

    One common seed: the difference alone. None: the difference of the two means. Differences that are all equal have
    no deviation to test with.
    """
    seeds = sorted(variant.keys() & baseline.keys())
    if not seeds:
        return Gain(mean_and_std(variant.values())[0] - mean_and_std(baseline.values())[0], 0)
    differences = tuple(variant[seed] - baseline[seed] for seed in seeds)
    mean, deviation = mean_and_std(differences)
    error, freedom = deviation / math.sqrt(len(seeds)), len(seeds) - 1
    if not error > 1e-9:  # NaN for one seed; rounding errors alone for equal differences
        return Gain(mean, len(seeds), differences=differences)
    margin = t_critical(freedom) * error
    p = 2 * float(_special().stdtr(freedom, -abs(mean) / error))
    return Gain(mean, len(seeds), mean - margin, mean + margin, p, differences)


def t_critical(freedom: int) -> float:
    """Quantile of Student's t that bounds a two-sided 95 % interval."""
    return float(_special().stdtrit(freedom, (1 + CONFIDENCE) / 2))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the exact sign-flip test of paired differences (Fisher's randomization test).

    The part of all 2**n choices of signs whose mean is at least as far from 0. It assumes no normal distribution, and
    cannot be below 2 / 2**n: 0.0625 with five differences, so that six are the least for a claim at 0.05. NaN without
    differences, and for more than 20, which have too many choices of signs.
    """
    values = np.asarray(differences, dtype=float)
    if not 1 <= len(values) <= MOST_TO_ENUMERATE:
        return math.nan
    sums = np.zeros(1)
    for value in np.abs(values):
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9))


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % BCa bootstrap interval (Efron 1987) of the mean difference; NaN for fewer than five or equal ones.

    Resampled 9,999 times with a fixed seed, so that a table is the same whenever it is made. It covers the mean less
    often than 95 % says: of 600 samples `rng.normal(size=n)` with `rng = np.random.default_rng(0)`, given with that
    `random_state=rng` to `scipy.stats.bootstrap` as below, 85.0 % with n = 5, 87.5 % with n = 6, 88.5 % with n = 10.
    """
    if len(differences) < LEAST_TO_RESAMPLE or np.ptp(differences) < 1e-9:
        return math.nan, math.nan
    from scipy.stats import bootstrap  # a second to import

    result = bootstrap((np.asarray(differences, dtype=float),), np.mean, n_resamples=RESAMPLES, method="BCa",
                       confidence_level=CONFIDENCE, random_state=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def pooled_deviation(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation of differences within their groups, and its degrees of freedom (NaN and 0 without any).

    It assumes equal variances of all groups, which gives small groups a more reliable estimate than their own.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan, 0
    squares = sum((len(group) - 1) * mean_and_std(group)[1] ** 2 for group in groups)
    return math.sqrt(squares / freedom), freedom


def unlike(groups: Sequence[Sequence[float]], level: float = 0.01) -> set[int]:
    """Positions of the groups that vary too much to be pooled with the others, for `pooled_deviation`.

    Cochran's test of the largest variance, for groups of any sizes ('t Lam, Analytica Chimica Acta 659, 2010), repeated
    without the groups that it finds, at the level at which ISO 5725-2 leaves them out. It needs three groups.
    """
    left = {place: (len(group) - 1, mean_and_std(group)[1] ** 2)
            for place, group in enumerate(groups) if len(group) > 1}
    found: set[int] = set()
    while len(left) > 2:
        total, freedom = sum(own * variance for own, variance in left.values()), sum(own for own, _ in left.values())
        shares = {place: own * variance / total for place, (own, variance) in left.items()} if total else {}
        chances = {place: len(left) * (1 - _special().betainc(own / 2, (freedom - own) / 2, shares[place]))
                   for place, (own, _) in left.items() if shares}
        worst = min(chances, key=chances.get, default=None)
        if worst is None or chances[worst] >= level:
            break
        found.add(worst)
        del left[worst]
    return found


def pooled_interval(gain: Gain, deviation: float, freedom: int) -> tuple[float, float]:
    """The 95 % interval of a mean gain from the deviation of `pooled_deviation`; NaN where there is none."""
    if not gain.seeds or not freedom:
        return math.nan, math.nan
    margin = t_critical(freedom) * deviation / math.sqrt(gain.seeds)
    return gain.mean - margin, gain.mean + margin


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the same order; NaN is no test and stays NaN."""
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def power_of(seeds: int, difference: float, deviation: float) -> float:
    """Chance that the paired t-test at 0.05 over so many seeds finds a mean difference of that size.

    `deviation` is that of the paired differences; points, as `difference`.
    """
    special, shift = _special(), abs(difference) / deviation * math.sqrt(seeds)
    critical = t_critical(seeds - 1)
    found, wrong_side = 1 - special.nctdtr(seeds - 1, shift, critical), special.nctdtr(seeds - 1, shift, -critical)
    return float(found + (0.0 if math.isnan(wrong_side) else wrong_side))


def seeds_needed(difference: float, deviation: float) -> int:
    """The least number of seeds with which the paired t-test at 0.05 finds a difference with a power of 80 %.

    Raises ValueError for numbers that are not above 0, and where 10,000 seeds do not suffice.
    """
    if not (difference > 0 and deviation > 0):
        raise ValueError("expected a difference and a deviation above 0")
    most = 2
    while power_of(most, difference, deviation) < POWER:
        if most == MOST_SEEDS:
            raise ValueError(f"more than {MOST_SEEDS} seeds")
        most = min(2 * most, MOST_SEEDS)
    return next(seeds for seeds in range(max(2, most // 2), most + 1)
                if power_of(seeds, difference, deviation) >= POWER)


def probability_of_improvement(variant: Iterable[float], baseline: Iterable[float]) -> float:
    """Chance that a run of the variant is above a run of the baseline, over all pairs of runs; ties count half.

    Agarwal et al. 2021, Section 4.3: the Mann-Whitney statistic over the number of pairs.
    """
    above = np.subtract.outer(np.fromiter(variant, float), np.fromiter(baseline, float))
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over blocks (1 is best), Friedman's p-value, and Nemenyi's critical difference.

    Two methods whose mean ranks are less than `critical` apart are not told apart at 0.05.
    """

    means: Mapping[str, float]
    blocks: int
    p: float
    critical: float


def rank_methods(blocks: Sequence[Mapping[str, float]]) -> Ranks:
    """Ranks of the methods within each block (a data set and a pair of networks, say), higher being better.

    Every block holds a number of every method. Equal numbers share their mean rank. Friedman's chi-squared test and
    Nemenyi's critical difference (Demsar 2006, Sections 3.2.2 and 3.2.4). Raises ValueError for fewer than two methods
    or blocks.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    names = list(blocks[0]) if blocks else []
    if len(names) < 2 or len(blocks) < 2:
        raise ValueError("expected two methods and two blocks at least")
    scores = np.array([[block[name] for name in names] for block in blocks])
    means = rankdata(-scores, axis=1).mean(axis=0)
    # Friedman's test needs three methods; with two it is the sign test, which SciPy's does not cover.
    p = float(friedmanchisquare(*scores.T).pvalue) if len(names) > 2 else math.nan
    quantile = float(studentized_range.ppf(CONFIDENCE, len(names), np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(len(names) * (len(names) + 1) / (6 * len(blocks)))
    return Ranks(dict(zip(names, map(float, means), strict=True)), len(blocks), p, critical)
