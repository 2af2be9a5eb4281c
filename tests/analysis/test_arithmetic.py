"""The arithmetic of the figures, compared with numbers computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mdistiller.analysis import arithmetic
from mdistiller.analysis.surface import directions, filter_normalised, loss_surface


def test_accuracy_by_segment_of_six_samples_in_three_segments():
    entropy = np.array([0.9, 0.1, 0.5, 0.2, 0.6, 0.8])  # by size: samples 1 3 | 2 4 | 5 0
    correct = np.array([False, True, True, True, False, False])
    assert arithmetic.accuracy_by_segment(entropy, correct, 3).tolist() == [100.0, 50.0, 0.0]


def test_segments_contain_every_sample_once_and_an_empty_one_has_no_accuracy():
    entropy = np.array([3.0, 1.0, 2.0])
    assert [part.tolist() for part in arithmetic.segments_by(entropy, 4)] == [[1], [2], [0], []]
    assert math.isnan(arithmetic.accuracy_by_segment(entropy, entropy > 0, 4)[3])


def test_the_top_tenth_has_at_least_one_sample():
    values = np.arange(10.0)
    assert np.flatnonzero(arithmetic.top_share(values)).tolist() == [9]
    assert np.flatnonzero(arithmetic.top_share(values[:3])).tolist() == [2]
    assert np.flatnonzero(arithmetic.top_share(np.zeros(20))).tolist() == [0, 1]  # ties: the first ones


def test_the_first_two_of_each_of_the_first_two_classes():
    target = np.array([2, 1, 0, 1, 1, 0, 0, 3])
    assert np.flatnonzero(arithmetic.first_of_classes(target, 2, 2)).tolist() == [1, 2, 3, 5]


def test_quartile_shares_by_hand():
    entropy = np.array([4.0, 3.0, 2.0, 1.0, 4.5, 3.5, 2.5, 1.5])
    loss = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])  # quartiles from low: 8, 6, 4, 2 of 20
    np.testing.assert_allclose(arithmetic.quartile_shares(entropy, loss), [40, 30, 20, 10])


def test_a_box_plot_has_the_quantiles():
    assert arithmetic.box(np.arange(101.0)) == {"low": 5, "q1": 25, "median": 50, "q3": 75, "high": 95}


@pytest.mark.parametrize(("level", "area"), [(0.0, 2.0), (0.5, 3.0), (-1.1, 0.0), (1.1, 4.0)])
def test_area_below_a_level_of_a_plane_by_hand(level, area):
    plane = np.linspace(-1, 1, 5)[:, None] + np.zeros(5)  # the loss is the first coordinate
    assert arithmetic.area_below(plane, level) == pytest.approx(area, abs=1e-9)


def test_the_area_below_a_level_within_one_cell():
    corner = np.array([[0.0, 1.0], [1.0, 2.0]])  # a + b: below 1 in half of the cell, up to the pieces on the diagonal
    assert arithmetic.area_below(corner, 1.0) == pytest.approx(4 * 0.5, abs=4 * 0.02)


def test_mean_and_std_over_seeds():
    mean, deviation = arithmetic.mean_and_std([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(deviation, [math.sqrt(2), 0])
    assert np.isnan(arithmetic.mean_and_std([[1.0]])[1]).all()


def test_every_filter_of_a_direction_has_the_norm_of_the_weights_filter_and_biases_stay():
    weight = torch.zeros(2, 1, 1, 2)
    weight[0, 0, 0] = torch.tensor([3.0, 4.0])
    weight[1, 0, 0] = torch.tensor([0.0, 0.5])
    direction = filter_normalised(weight, torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.tensor([5.0, 0.5]))
    assert not filter_normalised(torch.ones(7), torch.Generator()).any()


class Linear(nn.Module):
    """Two classes from two inputs, without a bias."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

    def forward(self, image):
        from mdistiller.models import Output

        return Output(image @ self.weight.T, {})


def test_a_surface_has_the_loss_of_the_weights_in_the_middle_and_of_moved_weights_around_it():
    network = Linear()
    batches = [{"image": torch.tensor([[1.0, 0.0]]), "target": torch.tensor([0])},
               {"image": torch.tensor([[0.0, 2.0], [1.0, 1.0]]), "target": torch.tensor([1, 0])}]
    surface = loss_surface(network, batches, points=3, seed=4)
    at_rest = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(2)) / 3
    assert surface[1, 1] == pytest.approx(at_rest, rel=1e-6)
    assert network.weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    first, second = directions(network, seed=4)
    moved = torch.eye(2) + first[0] - second[0]
    images, target = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([0, 1, 0])
    expected = nn.functional.cross_entropy(images @ moved.T, target)
    assert surface[2, 0] == pytest.approx(float(expected), rel=1e-6)
