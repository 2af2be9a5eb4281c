"""Function-consistent feature distillation (Liu et al., ICLR 2023): the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision
from mdistiller.losses.kd import kd_loss


@in_full_precision
def fcfd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    feats_bridged: list[Tensor],
    feats_teacher: list[Tensor],
    feats_mixed: list[list[Tensor]],
    logits_mixed: list[Tensor],
    temperature: float,
) -> dict[str, Tensor]:
    """The four losses of a batch by name, each (B,) (Liu et al., ICLR 2023, openreview pgHNOcxEdRI).

    `feats_teacher` are the teacher's maps (B, C, H, W) of consecutive stages up to the last one, and `feats_bridged`
    the student's maps of the same stages in the same shapes. `feats_mixed` has one list for each mixed path that ends
    in the teacher, with the maps of its stages up to the last one. Logits are (B, C); `logits_mixed` has one entry for
    each mixed path. Returned are
      appearance  squared distances of feats_bridged to feats_teacher
      functional  squared distances of feats_mixed to feats_teacher
      kd          KL divergence from logits_teacher to logits_student
      mixed       KL divergences from logits_teacher to each of logits_mixed
    The squared distance of two maps is the mean over their entries; for the last stage, that of the maps after ReLU and
    global average is added. Divergences are in nats, at `temperature`, times temperature**2. The losses are sums over
    stages and paths, not means; functional and mixed are 0 without a path. The teacher's logits and maps get no
    gradient.
    """
    target, feats_teacher = logits_teacher.detach(), [feat.detach() for feat in feats_teacher]
    nothing = torch.zeros_like(target[:, 0])
    return {
        "appearance": _distance(feats_bridged, feats_teacher),
        "functional": sum((_distance(feats, feats_teacher) for feats in feats_mixed), nothing),
        "kd": kd_loss(logits_student, target, temperature),
        "mixed": sum((kd_loss(logits, target, temperature) for logits in logits_mixed), nothing),
    }


def _distance(feats, feats_teacher):
    """Sum of the mean squared differences of two lists of maps, paired from the end, and of the pooled last maps."""
    pairs = list(zip(reversed(feats), reversed(feats_teacher), strict=False))
    pooled = [F.relu(feat).mean((2, 3)) for feat in pairs[0]]
    maps = [(feat - feat_teacher).square().mean((1, 2, 3)) for feat, feat_teacher in pairs]
    return sum(maps) + (pooled[0] - pooled[1]).square().mean(1)
