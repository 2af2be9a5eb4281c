"""A comprehensive overhaul of feature distillation (Heo et al., 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit

RARE = 0.001  # if negative values are less probable than this, the margin is -3 standard deviations


def margin_from_bn(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of the negative values of N(bias, weight^2) for each channel (Heo et al., arXiv:1904.01866, section 3.1).

    The affine parameters of a batch norm, (C,), (C,) -> (C,), at most 0. If negative values have a probability below
    1/1000 the margin is -3 |weight|; for a weight of 0 it is min(bias, 0). Computed in double precision.
    """
    sigma, mean = weight.detach().double().abs(), bias.detach().double()
    safe = torch.where(sigma > 0, sigma, 1.0)
    below = torch.special.ndtr(-mean / safe)
    density = torch.exp(-((mean / safe) ** 2) / 2) / math.sqrt(2 * math.pi)
    expected = mean - sigma * density / below.clamp(min=RARE)
    margin = torch.where(below > RARE, expected, -3 * sigma)
    return torch.where(sigma > 0, margin, mean.clamp(max=0)).to(weight.dtype)


def _partial_l2(student, teacher, margin):
    """Sum over the map of (student - t)^2, with t = max(teacher, margin), at positions with t > 0 or student > t."""
    target = torch.maximum(teacher, margin.view(1, -1, 1, 1))
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).flatten(1).sum(dim=1)


def ofd_loss(
    connected_student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor, margins: list[Tensor] | Tensor
) -> Tensor:
    """Partial L2 distance of pre-activations with margin ReLU (Heo et al., arXiv:1904.01866, Eqs. 1 to 3) -> (B,).

    Each argument is a list with one tensor per level, the deepest last, or the tensor of a single level: the student's
    maps (B, C, h, w) after their connectors, the teacher's maps (B, C, H, W), which are adaptively average pooled to
    the student's size, and the margins (C,). The distances are sums over the map, not means. The deepest level has
    weight 1, the next 1/2, then 1/4, and so on. Where the teacher is negative, only a student above
    max(teacher, margin) has a loss.
    """
    if isinstance(connected_student, Tensor):
        connected_student, teacher, margins = [connected_student], [teacher], [margins]
    total = 0.0
    for student, target, margin in zip(connected_student, teacher, margins, strict=True):
        level = _partial_l2(student, F.adaptive_avg_pool2d(target, student.shape[2:]), margin)
        total = total / 2 + level
    return total


def _connector(in_channels, out_channels, kernel):
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=(kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@register("OFD")
class OFD(Distiller):
    """A Comprehensive Overhaul of Feature Distillation (Heo et al., ICCV 2019, arXiv:1904.01866).

    weight * sum over levels of (partial L2 distance of the pre-activations) / 2^(number of deeper levels).
    With TEACHER_MODE train, the authors' choice, the teacher's batch norms use batch statistics; with eval, running
    statistics.

    Departs from mdistiller: the numbers of channels are taken from the maps; for a network without `preact_feats`
    (MobileNetV2, whose stages have no last activation) `feats` are used; and if only the deepest levels are compared,
    their own margins are used.
    """

    defaults = {
        "CONNECTOR": {"KERNEL_SIZE": Key(1, choices=(1, 3, 5, 7, 9, 11), help=(
            "Kernel size of the convolutions from the student's channels to the teacher's."))},
        "TEACHER_MODE": Key("train", choices=("train", "eval"), help=(
            "Mode of the teacher: batch norms use batch statistics (train) or running statistics (eval).")),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(0.001)},
    }
    inputs = "features"
    teacher_mode = "train"

    def build(self, cfg):
        self.ce_weight, self.feature_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.teacher_mode = cfg.TEACHER_MODE
        maps = [_preactivations(output) for output in self.dry_run()]
        student, teacher = ([tuple(feat.shape) for feat in feats] for feats in maps)
        try:
            norms = self.teacher.get_bn_before_relu()
        except (AttributeError, NotImplementedError):
            norms = []
        self.depth = min(len(student), len(teacher), len(norms))
        if self.depth == 0:
            reason = "it needs maps of both networks and the teacher's batch norm before each activation"
            raise misfit(self, student, teacher, reason)
        student, teacher, norms = student[-self.depth :], teacher[-self.depth :], norms[-self.depth :]
        self.connectors = nn.ModuleList(
            _connector(ours[1], theirs[1], cfg.CONNECTOR.KERNEL_SIZE)
            for ours, theirs in zip(student, teacher, strict=True)
        )
        for level, norm in enumerate(norms):
            self.register_buffer(f"margin{level}", margin_from_bn(norm.weight, norm.bias))

    def sample_losses(self, student, teacher, **batch):
        feats_student = _preactivations(student)[-self.depth :]
        connected = [connect(feat) for connect, feat in zip(self.connectors, feats_student, strict=True)]
        margins = [getattr(self, f"margin{level}") for level in range(self.depth)]
        loss = ofd_loss(connected, _preactivations(teacher)[-self.depth :], margins)
        return {"overhaul": self.feature_weight * loss}


def _preactivations(output):
    """Maps before the last activation of each stage, without the stem; `feats` if stages have no last activation."""
    features = output.features
    return features.get("preact_feats", features.get("feats", []))[1:]
