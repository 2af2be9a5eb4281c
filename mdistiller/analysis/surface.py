"""Loss surfaces (Li et al., Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-10  # as in the release of the method


def filter_normalised(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction with the shape of a parameter, in which every filter has the norm of the weight's filter.

    A filter is weight[i]. The direction of biases and batch norms (one dimension) is 0.
    """
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    direction = torch.randn(weight.shape, generator=generator).to(weight)
    norms = [tensor.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1)) for tensor in (weight, direction)]
    return direction * norms[0] / (norms[1] + EPSILON)


def directions(network: nn.Module, seed: int) -> list[list[Tensor]]:
    """Two filter-normalised directions, one tensor per parameter; equal for equal networks and seeds."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter.detach() for parameter in network.parameters()]
    return [[filter_normalised(weight, generator) for weight in parameters] for _ in range(2)]


@torch.no_grad()
def loss_surface(network: nn.Module, batches: list[dict], points: int, seed: int = 0) -> np.ndarray:
    """Mean cross-entropy (nats) on `batches` at weights + a * d1 + b * d2: (points, points).

    a and b range from -1 to 1. The network must be in eval mode; its weights are restored at the end.
    """
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    first, second = directions(network, seed)
    steps = np.linspace(-1, 1, points)
    surface = np.empty((points, points))
    try:
        for row, a in enumerate(steps):
            for column, b in enumerate(steps):
                _move(network, weights, (a, first), (b, second))
                surface[row, column] = _loss(network, batches)
    finally:
        _move(network, weights)
    return surface


def _move(network, weights, *steps):
    for position, parameter in enumerate(network.parameters()):
        moved = weights[position]
        for length, direction in steps:
            moved = moved + float(length) * direction[position]
        parameter.copy_(moved)


def _loss(network, batches):
    total = sum(F.cross_entropy(network(b["image"]).logits.float(), b["target"], reduction="sum") for b in batches)
    return float(total) / sum(len(batch["target"]) for batch in batches)
