"""Logit standardization (Sun et al., CVPR 2024, arXiv:2403.01427): a switch for logit losses, not a method."""

from torch import Tensor


def standardize(logits: Tensor) -> Tensor:
    """Each row minus its mean, over its standard deviation: (B, C) -> (B, C).

    The deviation is the unbiased one (divisor C - 1), with 1e-7 added outside the root, as released.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))
