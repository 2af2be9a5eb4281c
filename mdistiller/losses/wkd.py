"""Distillation by Wasserstein distance between class probabilities (Lv et al., NeurIPS 2024): the loss."""

import math

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision

CLASSES_AT_ONCE = 32  # whose products with one class exist together


@in_full_precision
def cka(features: Tensor) -> Tensor:
    """Linear centred kernel alignment of every pair of classes: (C, n, D), n samples of each class -> (C, C) in [0, 1].

    The k-th samples of two classes form a pair. The result is 0 if all samples of a class are equal.
    """
    means = features.mean(dim=1, keepdim=True)
    products = features.new_zeros(len(features), len(features))
    for one in range(len(features)):
        centred = features[one] - means[one]
        for start in range(one, len(features), CLASSES_AT_ONCE):
            others = slice(start, min(start + CLASSES_AT_ONCE, len(features)))
            products[one, others] = ((features[others] - means[others]).mT @ centred).square().sum((1, 2))
    norms = products.diagonal().sqrt()
    upper = (products / (norms[:, None] * norms).clamp_min(torch.finfo(products.dtype).tiny)).triu()
    return upper + upper.triu(1).mT


@in_full_precision
def transport_cost(similarity: Tensor, sharpness: float) -> Tensor:
    """1 - exp(-sharpness (1 - similarity)) (Lv et al., arXiv:2412.08139), at least 0, and 0 on the diagonal.

    (C, C) -> (C, C).
    """
    distance = (1 - similarity).fill_diagonal_(0)
    return (1 - torch.exp(-sharpness * distance)).clamp_min(0)


@in_full_precision
def sinkhorn_distance(log_p: Tensor, log_q: Tensor, cost: Tensor, reg: float, iterations: int) -> Tensor:
    """Cost of the regularised optimal transport from p to q after `iterations`, at least 1, of Sinkhorn's algorithm.

    Log-probabilities (B, C), -inf for classes that both leave out, and one cost matrix (C, C) -> (B,). Each iteration
    ends with the step after which the rows of the plan sum to p. The scaling vectors are stored as logarithms, and
    their products with the kernel are computed relative to the largest entry of each row, so that no tensor (B, C, C)
    is needed.
    """
    kernel = torch.exp(-cost / reg)
    log_u = torch.zeros_like(log_p).masked_fill(log_p.isneginf(), -math.inf)
    for _ in range(iterations):
        log_v = log_q - _log_product(log_u, kernel)
        log_u = log_p - _log_product(log_v, kernel.mT)
    (u, top_u), (v, top_v) = _relative(log_u), _relative(log_v)
    return ((u @ (kernel * cost)) * v).sum(dim=1) * torch.exp(top_u + top_v).squeeze(1)


def _relative(log_x):
    top = log_x.detach().amax(dim=1, keepdim=True)
    return torch.exp(log_x - top), top


def _log_product(log_x, kernel):
    """log(exp(log_x) @ kernel), without overflow."""
    x, top = _relative(log_x)
    return torch.log(x @ kernel) + top


@in_full_precision
def wkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    cost: Tensor,
    temperature: float,
    reg: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Wasserstein distance of the non-target probabilities (Lv et al., arXiv:2412.08139): (B, C), (B, C), (B,) -> (B,).

    `cost` (C, C) is the cost of moving probability from one class to another. The target's probability is left out for
    both networks, and the others are renormalised. There is no factor temperature**2. `reg` and `iterations` are those
    of `sinkhorn_distance`. The distance is 0 if one of the networks gives the probability 1 to the target.
    """
    others = [
        (logits / temperature).scatter(1, target[:, None], -math.inf) for logits in (logits_student, logits_teacher)
    ]
    empty = others[0].isneginf().all(dim=1) | others[1].isneginf().all(dim=1)
    log_p, log_q = (logits.masked_fill(empty[:, None], 0.0).log_softmax(dim=1) for logits in others)
    return sinkhorn_distance(log_p, log_q, cost, reg, iterations).masked_fill(empty, 0.0)
