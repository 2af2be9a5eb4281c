"""Stateless random numbers: known values, uniformity and independence."""

import numpy as np
import pytest
from scipy import stats

from mdistiller.data.hashing import (
    ORDER,
    STRONG_VIEW,
    WEAK_VIEW,
    below,
    permutation,
    random_bits,
    splitmix64,
    uniform,
)

SAMPLES = np.arange(50_000)


def test_splitmix64_gives_the_published_sequence_of_seed_1234567():
    states = np.array([1234567 + step * 0x9E3779B97F4A7C15 & 2**64 - 1 for step in range(1, 6)], np.uint64)
    expected = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert splitmix64(states).tolist() == expected


def test_the_random_numbers_equal_stored_values():
    assert random_bits(0, ORDER, 0, [0, 1]).tolist() == [[8695987549771912286], [14419493659430373159]]
    assert random_bits(7, WEAK_VIEW, 3, [5], 2).tolist() == [[8889846062990414924, 15746583804372966096]]
    assert permutation(0, 1, 10).tolist() == [6, 0, 7, 5, 3, 9, 2, 1, 8, 4]


def test_a_sample_s_numbers_do_not_depend_on_the_other_samples():
    whole = random_bits(3, WEAK_VIEW, 8, SAMPLES, count=4)
    mixed = np.random.default_rng(0).permutation(len(SAMPLES))[:1000]
    assert (random_bits(3, WEAK_VIEW, 8, mixed, count=4) == whole[mixed]).all()
    assert (random_bits(3, WEAK_VIEW, 8, [4321], count=2)[0] == whole[4321, :2]).all()
    each = random_bits(3, WEAK_VIEW, np.array([8, 9, 8]), [0, 1, 4321], count=4)  # samples of several epochs at once
    assert (each == np.stack([whole[0], random_bits(3, WEAK_VIEW, 9, [1], count=4)[0], whole[4321]])).all()


@pytest.mark.parametrize("seed, stream, epoch", [(0, 0, 1), (0, 1, 1), (1, 1, 1), (2**32 - 1, 3, 480)])
def test_numbers_are_uniform_and_every_bit_is_fair(seed, stream, epoch):
    bits = random_bits(seed, stream, epoch, SAMPLES, count=2)
    assert stats.kstest(uniform(bits).ravel(), "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount(below(bits, 162).ravel(), minlength=162)).pvalue > 1e-3
    ones = [int((bits >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
    deviation = (np.array(ones) - bits.size / 2) / np.sqrt(bits.size / 4)
    assert np.abs(deviation).max() < 4.2  # of 64 normal deviates, once in 600 tries


def test_streams_epochs_seeds_draws_and_neighbours_are_uncorrelated():
    base = uniform(random_bits(0, WEAK_VIEW, 1, SAMPLES, count=2))
    others = {
        "stream": uniform(random_bits(0, STRONG_VIEW, 1, SAMPLES))[:, 0],
        "epoch": uniform(random_bits(0, WEAK_VIEW, 2, SAMPLES))[:, 0],
        "seed": uniform(random_bits(1, WEAK_VIEW, 1, SAMPLES))[:, 0],
        "draw": base[:, 1],
        "neighbour": np.roll(base[:, 0], 1),
    }
    limit = 4 / np.sqrt(len(SAMPLES))
    for name, other in others.items():
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < limit, name


def test_numbers_of_one_sample_over_the_epochs_are_uniform():
    values = [below(random_bits(0, WEAK_VIEW, epoch, [17]), 9)[0, 0] for epoch in range(3000)]
    assert stats.chisquare(np.bincount(values, minlength=9)).pvalue > 1e-3


def test_below_and_uniform_include_the_lower_bound_and_exclude_the_upper_one():
    extremes = np.array([0, 2**64 - 1], np.uint64)
    assert below(extremes, 14).tolist() == [0, 13]
    assert uniform(extremes).tolist() == [0.0, 1 - 2.0**-53]


def test_an_epoch_s_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [permutation(0, 1, 1000), permutation(0, 2, 1000), permutation(1, 1, 1000)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert all((one != two).mean() > 0.99 for one, two in zip(orders, orders[1:] + orders[:1], strict=True))
    assert abs(stats.spearmanr(orders[0], orders[1]).statistic) < 0.12
