"""Class attention transfer (Guo et al., CVPR 2023): the loss."""

import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def class_activation_maps(feature_map: Tensor, weight: Tensor) -> Tensor:
    """The classifier without its bias, applied at each position: (B, D, H, W), (C, D) -> (B, C, H, W)."""
    return F.conv2d(feature_map, weight[:, :, None, None])


@in_full_precision
def catkd_loss(cams_student: Tensor, cams_teacher: Tensor, resolution: int = 2, normalize: bool = True) -> Tensor:
    """Mean squared difference of pooled class activation maps (Guo et al., arXiv:2304.12777).

    (B, C, H, W), (B, C, H, W) -> (B,); the sizes may differ. Each map is average pooled to `resolution` x `resolution`
    and, with `normalize`, divided by its norm over positions. The mean runs over classes and positions, as released.
    """
    student, teacher = (F.adaptive_avg_pool2d(cams, resolution).flatten(2) for cams in (cams_student, cams_teacher))
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return (student - teacher).square().mean((1, 2))
