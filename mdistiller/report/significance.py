"""Gains as cells of tables: intervals, p-values, Holm's correction and further tests. Does not import torch."""

import math
from collections.abc import Sequence

from mdistiller.runs.statistics import (
    LEAST_TO_RESAMPLE,
    POWER,
    Gain,
    bootstrap_interval,
    holm,
    pooled_deviation,
    pooled_interval,
    seeds_needed,
    sign_flip_p,
    unlike,
)

GAIN_HEAD = ("gain, last epoch", "95 % interval", "pooled", "p", "p, Holm")
RESAMPLED_HEAD = ("method", "compared with", "seeds", "gain", "BCa interval", "sign-flip p", "chance of improvement")
LEVEL = 0.05
LEAST_FREEDOM = 4  # least degrees of freedom of a pooled deviation; with fewer it is as uncertain as that of one row
WORDS = (
    "Gains are paired by seed. *95 % interval* and *p* are those of Student's paired t-test. *pooled* is the same "
    "interval with one standard deviation estimated from all rows of the table, because two or three differences say "
    "little about it; it assumes that the rows vary alike and independently (rows with one baseline share its runs), "
    "and needs four degrees of freedom. Rows that vary more than the others (Cochran's test at 0.01) are not pooled "
    "and have no such interval. *p, Holm* is corrected for the number of tests in the table."
)
RESAMPLED_WORDS = (
    "Comparisons over five seeds and more, without a normal distribution. *BCa interval*: the 95 % bootstrap interval "
    "of the mean gain, which is too narrow for so few seeds (of 600 simulated normal samples it held the mean in 85 % "
    "with five seeds, 88 % with six and 89 % with ten). *sign-flip p*: the exact test, which cannot be below 0.0625 "
    "with five seeds, so that six are the least for a claim. *chance of improvement*: the part of all pairs of runs in "
    "which the run of the method is above that of the other."
)


def gain_cells(gains: Sequence[Gain | None]) -> list[tuple[str, ...]]:
    """The cells of GAIN_HEAD for the rows of one table; None is a row without a comparison."""
    found = [gain for gain in gains if gain is not None]
    groups = [gain.differences for gain in found]
    apart = unlike(groups)
    pooled = pooled_deviation([group for place, group in enumerate(groups) if place not in apart])
    pools = ((math.nan, 0) if place in apart else pooled for place in range(len(found)))
    corrected = iter(holm([gain.p for gain in found]))
    return [("",) * len(GAIN_HEAD) if gain is None else _cells(gain, next(pools), next(corrected)) for gain in gains]


def _cells(gain, pooled, corrected):
    own = interval_text(gain.low, gain.high)
    pooled = pooled if pooled[1] >= LEAST_FREEDOM else (math.nan, 0)
    return (f"{gain.mean:+.2f}", own, interval_text(*pooled_interval(gain, *pooled)), p_text(gain.p), p_text(corrected))


def interval_text(low: float, high: float) -> str:
    """ "+0.31 to +1.29"; empty for NaN."""
    return "" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def p_text(p: float) -> str:
    """ "0.012", "< 0.001"; empty for NaN."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def flip_text(differences: Sequence[float]) -> str:
    """The p-value of the exact sign-flip test, such as "0.0625"; empty for more differences than it can take."""
    p = sign_flip_p(differences)
    return "" if math.isnan(p) else f"{p:.4f}"


def resampled_row(names: tuple[str, str], gain: Gain, improvement: float) -> tuple[str, ...] | None:
    """The cells of RESAMPLED_HEAD; None for a comparison over fewer than five seeds."""
    if gain.seeds < LEAST_TO_RESAMPLE:
        return None
    interval = interval_text(*bootstrap_interval(gain.differences))
    return (*names, str(gain.seeds), f"{gain.mean:+.2f}", interval, flip_text(gain.differences), f"{improvement:.2f}")


def count_words(p_values: Sequence[float]) -> str:
    """The number of tests of a page below 0.05, and how many remain after a common correction."""
    tests = [p for p in p_values if not math.isnan(p)]
    if not tests:
        return "No comparison has enough seeds for a test yet."
    raw, kept = (sum(p <= LEVEL for p in values) for values in (tests, holm(tests)))
    return (f"Tests of all tables together: {len(tests)}; with p at most {LEVEL}: {raw}; kept by Holm's correction "
            f"over all of them: {kept}.")


def power_lines(differences: Sequence[float], deviations: Sequence[float]) -> tuple[tuple[str, ...], list, str]:
    """(head, rows, text): seeds needed to find a difference (points), by deviation of the paired differences."""
    head = ("deviation of the differences", *(f"{difference:g} points" for difference in differences))
    rows = [(f"{deviation:g}", *(_seeds(difference, deviation) for difference in differences))
            for deviation in deviations]
    words = (f"Seeds of each method with which a paired t-test at {LEVEL} finds a mean difference with {POWER:.0%} "
             "power; the deviation is that of the differences over seeds.")
    return head, rows, words


def _seeds(difference, deviation):
    try:
        return str(seeds_needed(difference, deviation))
    except ValueError as error:
        return str(error)
