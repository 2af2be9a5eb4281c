"""The mathematics of every method as pure functions of tensors, and the sample weights of EA-KD. Imports only PyTorch.

A loss returns one number for each sample, without reduction over the batch and without the weights of a configuration;
the few terms that only exist for a whole batch are scalars. The docstring of each function gives shapes, units and
sources. Inputs in half precision are converted to float32, also within autocast.
"""

from mdistiller.functional import entropy, standardize
from mdistiller.losses.at import at_loss
from mdistiller.losses.catkd import catkd_loss, class_activation_maps
from mdistiller.losses.crd import crd_loss, nce_loss, similarities
from mdistiller.losses.crld import crld_losses
from mdistiller.losses.ctkd import cosine_schedule, ctkd_loss, gradient_reversal
from mdistiller.losses.dist import dist_losses, pearson
from mdistiller.losses.divergence import (
    adaptive_kl,
    forward_kl,
    generalized_js,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from mdistiller.losses.dkd import dkd_loss, split_target
from mdistiller.losses.ea import SampleWeights, Weighting, ea_weight, weigh_entropies
from mdistiller.losses.fcfd import fcfd_loss
from mdistiller.losses.fitnet import fitnet_loss
from mdistiller.losses.kd import kd_loss
from mdistiller.losses.kdsvd import kdsvd_loss, relation_loss, right_singular_vectors
from mdistiller.losses.maps import pairs_of_one_size, pool_to_smaller
from mdistiller.losses.mld import confidence_masks, mld_losses
from mdistiller.losses.nkd import nkd_loss, target_loss
from mdistiller.losses.nst import nst_loss
from mdistiller.losses.ofd import margin_from_bn, ofd_loss
from mdistiller.losses.pad import pad_loss
from mdistiller.losses.pkt import pkt_loss
from mdistiller.losses.reviewkd import hcl_loss
from mdistiller.losses.rkd import rkd_loss
from mdistiller.losses.rld import rld_loss
from mdistiller.losses.sdd import multi_scale_logits, sdd_loss
from mdistiller.losses.simkd import simkd_loss
from mdistiller.losses.sp import sp_loss
from mdistiller.losses.ttm import ttm_loss, wttm_loss
from mdistiller.losses.vid import vid_loss
from mdistiller.losses.wkd import cka, sinkhorn_distance, transport_cost, wkd_loss

__all__ = [
    "SampleWeights",
    "Weighting",
    "adaptive_kl",
    "at_loss",
    "catkd_loss",
    "cka",
    "class_activation_maps",
    "confidence_masks",
    "cosine_schedule",
    "crd_loss",
    "crld_losses",
    "ctkd_loss",
    "dist_losses",
    "dkd_loss",
    "ea_weight",
    "entropy",
    "fcfd_loss",
    "fitnet_loss",
    "forward_kl",
    "generalized_js",
    "gradient_reversal",
    "hcl_loss",
    "kd_loss",
    "kdsvd_loss",
    "margin_from_bn",
    "mld_losses",
    "multi_scale_logits",
    "nce_loss",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "pad_loss",
    "pairs_of_one_size",
    "pearson",
    "pkt_loss",
    "pool_to_smaller",
    "relation_loss",
    "reverse_kl",
    "right_singular_vectors",
    "rkd_loss",
    "rld_loss",
    "sdd_loss",
    "similarities",
    "simkd_loss",
    "sinkhorn_distance",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "sp_loss",
    "split_target",
    "standardize",
    "target_loss",
    "transport_cost",
    "ttm_loss",
    "vid_loss",
    "weigh_entropies",
    "wkd_loss",
    "wttm_loss",
]
