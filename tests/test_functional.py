"""The functions below every method, by hand. Most losses do not change if a row of logits is shifted, so that their
numbers do not show whether it was.
"""

import math

import torch

from mdistiller.functional import entropy, standardize


def test_standardized_rows_have_the_mean_0_and_the_deviation_1_with_the_divisor_of_a_sample():
    rows = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])  # squares of 2, 1, 0 and 3: 14 / 3 is a variance
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / math.sqrt(14 / 3)
    torch.testing.assert_close(standardize(rows), torch.stack([expected, torch.zeros(4)]))
    # the mean 1e-7, the deviation 1e-7 times the root of 2, and 1e-7 beside it
    close = torch.tensor([[0.0, 2e-7]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, 1.0]], dtype=torch.float64) * (math.sqrt(2) - 1)
    torch.testing.assert_close(standardize(close), expected)


def test_entropy_is_that_of_the_softmax_itself_where_no_temperature_is_given():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    torch.testing.assert_close(entropy(logits), torch.tensor([1.5 * math.log(2)]))
