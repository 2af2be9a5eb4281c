"""Variational information distillation (Ahn et al., 2019)."""

import math

import torch
from torch import nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import shapes_of_stages, stages
from mdistiller.losses.maps import pool_to_smaller
from mdistiller.losses.vid import vid_loss


def _regressor(in_channels, out_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
    )


@register("VID")
class VID(Distiller):
    """Variational Information Distillation for Knowledge Transfer (Ahn et al., CVPR 2019, arXiv:1904.05835).

    weight * sum over stages of mean(((mu(student) - teacher)^2 / var + ln var) / 2), where mu consists of three 1x1
    convolutions and var is one trained number for each channel. With TRAIN_SCALE False, var stays at INIT_PRED_VAR, as
    in the code of mdistiller, which does not pass it to the optimiser. INPUT_SIZE is the image size for which shapes
    are computed; it is used only if the data have no size.
    """

    defaults = {
        "INIT_PRED_VAR": Key(5.0, above=0, most=1e6, help="Initial variance of each channel."),
        "EPS": Key(1e-5, least=0, most=1, help="Added to the variance."),
        "INPUT_SIZE": Key([32, 32], least=8, most=4096, help=(
            "Image size for which shapes are computed if the data have none.")),
        "TRAIN_SCALE": Key(True, help="Whether the variances are trained."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    @classmethod
    def check(cls, cfg):
        if cfg.INIT_PRED_VAR <= cfg.EPS:
            return "INIT_PRED_VAR", f"expected a number greater than VID.EPS, {cfg.EPS}; found {cfg.INIT_PRED_VAR}"
        return None

    def build(self, cfg):
        self.ce_weight, self.information_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.eps = cfg.EPS
        student, teacher = shapes_of_stages(self, self.data_info.image_size or cfg.INPUT_SIZE)
        channels = [(ours[1], theirs[1]) for ours, theirs in zip(student, teacher, strict=False)]
        self.regressors = nn.ModuleList(_regressor(*pair) for pair in channels)
        softplus = cfg.INIT_PRED_VAR - cfg.EPS
        initial = softplus + math.log(-math.expm1(-softplus))  # ln(exp(softplus) - 1), without overflow
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.full((theirs,), initial), requires_grad=cfg.TRAIN_SCALE) for _, theirs in channels
        )

    def sample_losses(self, student, teacher, **batch):
        loss = 0.0
        levels = zip(self.regressors, self.log_scales, stages(student), stages(teacher), strict=False)
        for regressor, log_scale, feat_student, feat_teacher in levels:
            feat_student, feat_teacher = pool_to_smaller(feat_student, feat_teacher)
            loss = loss + vid_loss(regressor(feat_student), feat_teacher, log_scale, self.eps)
        return {"information": self.information_weight * loss}
