"""Logit standardization (Sun et al., CVPR 2024, arXiv:2403.01427): an option of logit methods, not a method."""

from mdistiller.functional import standardize

__all__ = ["standardize"]
