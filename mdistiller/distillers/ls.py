"""Logit standardization (Sun et al., CVPR 2024, arXiv:2403.01427): a switch for logit losses, not a method."""

from mdistiller.functional import standardize

__all__ = ["standardize"]
