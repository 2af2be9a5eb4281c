"""Entropy-adaptive sample weights, as methods and their base class know them: see `mdistiller.losses.ea`."""

from mdistiller.functional import entropy
from mdistiller.losses.ea import KINDS, LEVELS, SampleWeights, Weighting, ea_weight, weigh_entropies

__all__ = ["KINDS", "LEVELS", "SampleWeights", "Weighting", "ea_weight", "entropy", "weigh_entropies"]
