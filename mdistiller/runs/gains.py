"""The arithmetic of tables: what a variant gains over its host, over the seeds that both were trained with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from mdistiller.runs.records import mean_and_std

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """A mean difference in points; interval and p-value (two-sided) are NaN where nothing can be tested."""

    mean: float
    seeds: int  # pairs of runs of one seed; 0: the difference of two means, over different seeds
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def paired_gain(variant: Mapping[int, float], host: Mapping[int, float]) -> Gain:
    """The mean of variant - host over common seeds, with Student's t interval and test. Both are seed -> accuracy.

    One common seed: the difference alone. None: the difference of the two means. Differences that are all equal have
    no deviation to test with.
    """
    seeds = sorted(variant.keys() & host.keys())
    if not seeds:
        return Gain(mean_and_std(variant.values())[0] - mean_and_std(host.values())[0], 0)
    mean, deviation = mean_and_std(variant[seed] - host[seed] for seed in seeds)
    error, freedom = deviation / math.sqrt(len(seeds)), len(seeds) - 1
    if not error > 1e-9:  # NaN for one seed; rounding errors alone for equal differences
        return Gain(mean, len(seeds))
    margin = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Gain(mean, len(seeds), mean - margin, mean + margin, p)
