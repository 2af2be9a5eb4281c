"""The statistics of tables against numbers worked out by hand or printed in the papers that they come from."""

import math

import numpy as np
import pytest

from mdistiller.runs.statistics import (
    bootstrap_interval,
    holm,
    paired_gain,
    pooled_deviation,
    pooled_interval,
    power_of,
    probability_of_improvement,
    rank_methods,
    seeds_needed,
    sign_flip_p,
    unlike,
)


@pytest.mark.parametrize(("differences", "p"), [
    ([1, 2, 3, 4, 5], 2 / 2**5),  # all of one sign: only they and their mirror image are as far from 0
    ([-1, -2, -3, -4, -5, -6], 2 / 2**6),
    ([1, 2, 4, -1], 6 / 16),  # sums of 6 and more: 8 (no flip), 6 (one of the 1s flipped, twice); and their mirrors
    ([2, -2], 1.0),
    ([0, 0, 3], 1.0),
])
def test_the_sign_flip_test_counts_the_signs_that_are_as_far_from_zero(differences, p):
    assert sign_flip_p(differences) == pytest.approx(p)


def test_five_seeds_cannot_be_below_a_sixteenth_and_six_can_be_below_a_twentieth():
    assert sign_flip_p([1.0] * 5) == 0.0625 and sign_flip_p([1.0] * 6) < 0.05


@pytest.mark.parametrize("number", [0, 21])
def test_without_pairs_and_for_too_many_there_is_no_sign_flip_test(number):
    assert math.isnan(sign_flip_p([1.0] * number))


def test_holm_s_correction_by_hand():
    # 0.005 * 4 = 0.02; 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 is below that, and so 0.06 too; NaN is no test
    assert holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx([0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_group_that_varies_more_than_the_others_is_found():
    # sums of squares 2, 2, 2 and 200 over 2 degrees each: of equal variances a share x of all has, with 2 and 6
    # degrees, the chance (1 - x)**3 to be exceeded: (6 / 206)**3 = 2.5e-5 for the last of four groups
    groups = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [-10, 0, 10], [5]]
    assert unlike(groups) == {3} and unlike(groups, level=9e-5) == set()  # four times 2.5e-5 is 9.9e-5
    # 2, 2 and 18: (4 / 22)**2 = 0.033, three times that is not below 0.01
    assert unlike([[1, 2, 3], [4, 5, 6], [-3, 0, 3]]) == set()
    assert unlike([[0, 0], [0, 0], [0, 0]]) == unlike([[0, 1], [0, 1000]]) == unlike([]) == set()  # nothing to compare
    assert unlike([*groups[:3], [-1000, 0, 1000], [-100, 0, 100]]) == {3, 4}  # one hides the other


def test_the_pooled_deviation_is_over_degrees_of_freedom():
    # squares: (1, 2, 3) has 2 over 2 degrees, (0, 4) has 8 over 1, one value has none: 10 over 3
    deviation, freedom = pooled_deviation([[1, 2, 3], [0, 4], [5]])
    assert (deviation, freedom) == (pytest.approx(math.sqrt(10 / 3)), 3)
    gain = paired_gain({0: 2.0, 1: 3.0}, {0: 0.0, 1: 0.0})  # mean 2.5 of two; t(3, 0.975) = 3.18245
    margin = 3.18245 * math.sqrt(10 / 3) / math.sqrt(2)
    assert pooled_interval(gain, deviation, freedom) == pytest.approx((2.5 - margin, 2.5 + margin), abs=1e-4)
    assert all(map(math.isnan, pooled_interval(gain, *pooled_deviation([[1.0]]))))


def test_ten_seeds_find_a_difference_of_one_deviation_with_eighty_percent_power():
    assert seeds_needed(0.3, 0.3) == 10 and seeds_needed(3.0, 3.0) == 10
    assert power_of(9, 0.3, 0.3) < 0.8 <= power_of(10, 0.3, 0.3)
    # For many seeds (z(0.975) + z(0.8))^2 (deviation / difference)^2 = 7.849 * 100 = 785, and about two more for t
    assert seeds_needed(0.1, 1.0) == 787
    assert 8192 < seeds_needed(0.0283, 1.0) <= 10_000
    assert power_of(5, 1e-9, 1.0) == pytest.approx(0.05, abs=1e-6)  # no difference: what chance alone finds


@pytest.mark.parametrize("wrong", [
    (0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (0.027, 1.0), (0.001, 10.0),  # 0.027: 10,769 seeds
])
def test_impossible_numbers_of_seeds_are_refused(wrong):
    with pytest.raises(ValueError, match="expected a difference|more than"):
        seeds_needed(*wrong)


def test_the_bootstrap_interval_is_that_of_few_numbers_repeatable_and_within_them():
    differences = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = bootstrap_interval(differences)
    # A bootstrap mean of five has deviation sqrt(2) / sqrt(5) = 0.632: about 3 +- 1.24
    assert (low, high) == (pytest.approx(1.76, abs=0.1), pytest.approx(4.24, abs=0.1))
    assert bootstrap_interval(differences) == (low, high)
    assert all(map(math.isnan, (*bootstrap_interval([1.0, 2.0, 3.0, 4.0]), *bootstrap_interval([2.0] * 5))))


def test_the_chance_of_improvement_counts_pairs_of_runs():
    # of the six pairs (1, 2, 3) against (2, 0): above in 1>0, 2>0, 3>2, 3>0; equal in 2=2
    assert probability_of_improvement([1, 2, 3], [2, 0]) == pytest.approx(4.5 / 6)
    assert probability_of_improvement([1.0], [2.0]) == 0.0


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_equals_demsar_s_table(methods, quantile):
    ranks = rank_methods([{str(method): -method for method in range(methods)}] * 6)
    assert ranks.critical == pytest.approx(quantile * math.sqrt(methods * (methods + 1) / 36), abs=2e-3)
    assert ranks.means == {str(method): method + 1 for method in range(methods)}


def test_ranks_share_ties_and_friedmans_test_is_chi_squared():
    blocks = [{"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 3.0, "b": 2.0, "c": 1.0}]
    ranks = rank_methods(blocks)
    assert ranks.means == pytest.approx({"a": 1, "b": 7 / 3, "c": 8 / 3})
    # 12 / (3 * 3 * 4) * (9 + 49 + 64) - 3 * 3 * 4 = 4.6667 with rank sums 3, 7, 8; exp(-x / 2) with 2 degrees
    assert ranks.p == pytest.approx(math.exp(-(122 / 3 - 36) / 2))
    assert rank_methods([{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}]).means == {"a": 1.25, "b": 1.75}
    assert np.isnan(rank_methods([{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}]).p)
    with pytest.raises(ValueError, match="two methods"):
        rank_methods(blocks[:1])
