"""Class attention transfer (Guo et al., CVPR 2023)."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import register
from mdistiller.distillers.last_map import LastMapDistiller


def class_activation_maps(feature_map: Tensor, weight: Tensor) -> Tensor:
    """The classifier without its bias, applied at each position: (B, D, H, W), (C, D) -> (B, C, H, W)."""
    return F.conv2d(feature_map, weight[:, :, None, None])


def catkd_loss(cams_student: Tensor, cams_teacher: Tensor, resolution: int = 2, normalize: bool = True) -> Tensor:
    """Mean squared difference of pooled class activation maps (Guo et al., arXiv:2304.12777).

    (B, C, H, W), (B, C, H, W) -> (B,); the sizes may differ. Each map is average pooled to `resolution` x `resolution`
    and, with `normalize`, divided by its norm over positions. The mean runs over classes and positions, as released.
    """
    student, teacher = (F.adaptive_avg_pool2d(cams, resolution).flatten(2) for cams in (cams_student, cams_teacher))
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return (student - teacher).square().mean((1, 2))


@register("CATKD", "CAT-KD", "CAT_KD")
class CATKD(LastMapDistiller):
    """Class Attention Transfer Based Knowledge Distillation (Guo et al., CVPR 2023, arXiv:2304.12777).

    CE + CAT_loss_weight * cat, where cat compares class activation maps: the last map, classified at each position.
    The authors move the classifier before the global average, as a convolution without bias. Here its weights are
    applied to the map, which gives the same maps and leaves the networks unchanged (their logits keep the bias). The
    keys, in the node CAT_KD, and the defaults are those of the authors' code, whose files set another weight,
    resolution and IF_NORMALIZE for each pair. With onlyCAT there is no cross-entropy.

    Uncertain: the paper normalises the maps, but the authors' files do so only for pairs of different architectures.
    """

    config_key = "CAT_KD"
    defaults = {
        "IF_NORMALIZE": Key(True, help="Divide each class activation map by its norm."),
        "onlyCAT": Key(False, help="Train without cross-entropy."),
        "LOSS": {
            "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
            "CAT_loss_weight": weight_key(400.0),
            "CAM_RESOLUTION": Key(2, least=1, most=256, help="Height and width to which the maps are pooled."),
        },
    }

    def build(self, cfg):
        self.check_maps()
        self.ce_weight = 0.0 if cfg.onlyCAT else cfg.LOSS.CE_WEIGHT
        self.cat_weight, self.resolution = cfg.LOSS.CAT_loss_weight, cfg.LOSS.CAM_RESOLUTION
        self.normalize = cfg.IF_NORMALIZE

    def sample_losses(self, student, teacher, **batch):
        cams = [
            class_activation_maps(output.features["map"], classifier.weight)
            for output, classifier in zip((student, teacher), self.classifiers, strict=True)
        ]
        return {"cat": self.cat_weight * catkd_loss(*cams, self.resolution, self.normalize)}
