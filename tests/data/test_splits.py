"""Fixed, class-balanced parts of a training set."""

import numpy as np
import pytest

from mdistiller.data.splits import ranks_in_class, train_val_positions
from mdistiller.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))
UNEVEN = np.array([0] * 40 + [1] * 7 + [2])  # one image of class 2


@pytest.mark.parametrize("labels", [LABELS, UNEVEN])
def test_ranks_count_each_class_from_zero(labels):
    ranks = ranks_in_class(labels)
    for label in np.unique(labels):
        assert sorted(ranks[labels == label]) == list(range((labels == label).sum()))


def test_ranks_are_shuffled_within_a_class():
    assert (np.diff(ranks_in_class(np.zeros(50, np.int64))) != 1).sum() > 40


def test_the_whole_set_is_trained_on_by_default():
    train, val = train_val_positions(UNEVEN, 1.0, 0.0)
    assert train.tolist() == list(range(48)) and not len(val)


@pytest.mark.parametrize("fraction, per_class", [(0.1, 5), (0.5, 25), (0.29, 14), (0.001, 1)])
def test_a_fraction_is_balanced_and_keeps_an_image_of_every_class(fraction, per_class):
    train, _ = train_val_positions(LABELS, fraction, 0.0)
    assert np.bincount(LABELS[train]).tolist() == [per_class] * 10
    assert (np.diff(train) > 0).all()


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_smaller_fractions_are_parts_of_larger_ones(val_fraction):
    parts = [set(train_val_positions(LABELS, fraction, val_fraction)[0]) for fraction in (0.01, 0.1, 0.2, 0.75, 1.0)]
    assert all(small < large for small, large in zip(parts, parts[1:], strict=False))


def test_validation_is_set_aside_first_and_does_not_depend_on_the_training_fraction():
    (train, val), (tenth, same_val) = (train_val_positions(LABELS, fraction, 0.2) for fraction in (1.0, 0.1))
    assert np.bincount(LABELS[val]).tolist() == [10] * 10
    assert np.bincount(LABELS[tenth]).tolist() == [4] * 10
    assert val.tolist() == same_val.tolist()
    assert sorted([*train, *val]) == list(range(500))


def test_a_class_of_one_image_stays_in_training():
    train, val = train_val_positions(UNEVEN, 0.1, 0.9)
    assert 47 in train and 47 not in val


def test_a_small_validation_fraction_still_takes_an_image_of_every_class_that_has_two():
    _, val = train_val_positions(UNEVEN, 1.0, 0.001)
    assert UNEVEN[val].tolist() == [0, 1]


def test_a_validation_part_without_an_image_is_refused():
    with pytest.raises(UserError, match="DATASET.VAL_FRACTION"):
        train_val_positions(np.arange(3), 1.0, 0.5)
