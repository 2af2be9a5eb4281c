"""Batch norms that accept one value per channel, by hand."""

import torch

from mdistiller.distillers.norm import MapBatchNorm, VectorBatchNorm


def test_statistics_are_those_of_the_batch_unless_it_has_one_value_per_channel():
    pair = torch.tensor([[1.0, 5.0], [3.0, 9.0]])  # means 2 and 7; deviations 1 and 2
    unit = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    for norm, shape in ((VectorBatchNorm(2, eps=1e-12), (2, 2)), (MapBatchNorm(2, eps=1e-12), (2, 2, 1, 1))):
        torch.testing.assert_close(norm(pair.view(shape)), unit.view(shape))
        running = 0.9 * 0 + 0.1 * 2, 0.9 * 1 + 0.1 * 2  # of the first channel: the mean, and the variance of a sample
        alone = norm(pair[:1].view(1, *shape[1:]))
        torch.testing.assert_close(alone.flatten()[0], torch.tensor((1 - running[0]) / running[1] ** 0.5))
        torch.testing.assert_close(norm.running_mean[0], torch.tensor(running[0]))  # a single value leaves it
