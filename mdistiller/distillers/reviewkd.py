"""Knowledge review (Chen et al., CVPR 2021)."""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, warm_up_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit
from mdistiller.distillers.norm import MapBatchNorm
from mdistiller.functional import warm_up
from mdistiller.losses.reviewkd import hcl_loss

LOG_100 = math.log(100)  # upper bound of the released code for any number of classes
STATED_SHAPES = {  # keys of mdistiller, with the values of its first pair of networks
    "SHAPES": [1, 8, 16, 32],
    "OUT_SHAPES": [1, 8, 16, 32],
    "IN_CHANNELS": [64, 128, 256, 256],
    "OUT_CHANNELS": [64, 128, 256, 256],
    "MAX_MID_CHANNEL": 512,
}
MAX_MID_CHANNELS = 512

logger = logging.getLogger(__name__)


def _conv_bn(in_channels, out_channels, kernel):
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, MapBatchNorm(out_channels))


class ABF(nn.Module):
    """Attention-based fusion (Chen et al., arXiv:2104.09044) of a student's map with the fused map of deeper levels.

    `forward(x (B, in, h, w), size, deeper (B, mid, h', w'))` returns (B, out, *size), to be compared with the teacher,
    and (B, mid, *size), the argument `deeper` of the next shallower level. Without `fuse` there is no deeper level.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, fuse: bool):
        super().__init__()
        self.conv1 = _conv_bn(in_channels, mid_channels, 1)
        self.conv2 = _conv_bn(mid_channels, out_channels, 3)
        self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, size: torch.Size, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.conv1(x)
        if self.att_conv is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            attention = self.att_conv(torch.cat([x, deeper], dim=1))
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.conv2(x), x


@register("REVIEWKD")
class ReviewKD(Distiller):
    """Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia, CVPR 2021, arXiv:2104.09044).

    weight * min(epoch / warm-up, 1) * mean(hcl_loss). From the pooled feature back to the first stage, each level of
    the student is fused with the deeper levels and compared with the teacher's pre-activation of the same level. In a
    feature pyramid, which has no pooled feature and no pre-activations, it is compared with the teacher's map. Networks
    with different numbers of stages are paired from the deepest stage.

    Channels and sizes are taken from the networks. SHAPES, OUT_SHAPES, IN_CHANNELS, OUT_CHANNELS and MAX_MID_CHANNEL
    (which has no effect in mdistiller either) are accepted for compatibility; a value that contradicts the networks is
    reported in the log. The teacher is in eval mode, as in mdistiller; the authors' code leaves it in train mode.
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "REVIEWKD_WEIGHT": weight_key(1.0),
        "WARMUP_EPOCHS": warm_up_key(20),
        "STU_PREACT": Key(False, help="Take the student's maps before their activation."),
        **{name: Key(default, least=1, most=2**20, help="Without effect: shapes are taken from the networks.")
           for name, default in STATED_SHAPES.items()},
    }
    search = {"REVIEWKD_WEIGHT": 10}
    inputs = "features"
    needs = ("image_feats",)
    sample_axis = "image"
    release_weighting = {"upper_bound": LOG_100}

    def build(self, cfg):
        self.ce_weight, self.review_weight = cfg.CE_WEIGHT, cfg.REVIEWKD_WEIGHT
        self.warmup = cfg.WARMUP_EPOCHS
        self.student_key = "preact_feats" if cfg.STU_PREACT else "feats"
        shapes = self.feature_shapes()
        student, teacher = self.dry_run()
        if self.student_key not in student.features:
            raise misfit(self, *shapes, "STU_PREACT needs preact_feats, which the student does not have")
        ends_in_maps = "pooled_feat" not in teacher.features and "pooled_feat" not in student.features
        self.teacher_key = "feats" if ends_in_maps and "preact_feats" not in teacher.features else "preact_feats"
        if self.teacher_key not in teacher.features:
            raise misfit(self, *shapes, "needs preact_feats, which the teacher does not have")
        self.depth = min(len(student.features[self.student_key]), len(teacher.features[self.teacher_key]))
        student, teacher = self._levels(student, self.student_key), self._levels(teacher, self.teacher_key)
        self._report_contradictions(cfg, student, teacher)
        mid_channels = min(MAX_MID_CHANNELS, student[-1].shape[1])
        pairs = list(zip(student, teacher, strict=True))[::-1]
        self.abfs = nn.ModuleList(  # from the deepest, which is not fused with anything
            ABF(feat_student.shape[1], mid_channels, feat_teacher.shape[1], fuse=index > 0)
            for index, (feat_student, feat_teacher) in enumerate(pairs)
        )

    def _levels(self, output, key):
        """The last `depth` maps: those of stages, not of the stem, then the pooled feature, if any, as a 1x1 map."""
        pooled = [output.features["pooled_feat"][:, :, None, None]] if "pooled_feat" in output.features else []
        return [*output.features[key], *pooled][-self.depth :]

    def _report_contradictions(self, cfg, student, teacher):
        found = {
            "IN_CHANNELS": [feat.shape[1] for feat in student],
            "OUT_CHANNELS": [feat.shape[1] for feat in teacher],
            "SHAPES": [feat.shape[2] for feat in student[::-1]],
            "OUT_SHAPES": [feat.shape[2] for feat in teacher[::-1]],
            "MAX_MID_CHANNEL": MAX_MID_CHANNELS,
        }
        for key, value in found.items():
            if cfg[key] not in (value, STATED_SHAPES[key]):
                logger.warning("REVIEWKD.%s: %s is not used; it is %s for these networks", key, cfg[key], value)

    def sample_losses(self, student, teacher, epoch, **batch):
        teacher_feats = self._levels(teacher, self.teacher_key)
        results, fused = [], None
        levels = zip(self._levels(student, self.student_key), teacher_feats, strict=True)
        for abf, (feat_student, feat_teacher) in zip(self.abfs, reversed(list(levels)), strict=True):
            result, fused = abf(feat_student, feat_teacher.shape[2:], fused)
            results.append(result)
        loss = hcl_loss(results[::-1], teacher_feats)
        return {"review": self.review_weight * warm_up(epoch, self.warmup) * loss}
