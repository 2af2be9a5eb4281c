"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381) at full width, as released for Tiny-ImageNet.

Departs from the paper as the released code does: a padded 1x1 stem without stride, stride 1 in stage 6, a first 1x1
convolution also in the block without expansion, and a bias in every convolution.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import Network, Output, global_pool, register_model
from mdistiller.models.cifar import mobilenetv2 as cifar


class InvertedResidual(cifar.InvertedResidual):
    activation = nn.ReLU6
    bias = True
    body_name = "residual"


@register_model("MobileNetV2", family="tiny_imagenet")
class MobileNetV2(Network):
    """`feats` are the stem, stages 2, 3 and 4 (linear bottlenecks) and the last 1x1 convolution. No `preact_feats`.

    `pooled_feat` is (B, 1280), as in all networks; in the released code it is (B, 1280, 1, 1).
    """

    stage_kind = "before_relu"

    def __init__(self, num_classes: int):
        super().__init__()
        block = InvertedResidual
        self.stage_channels = [32, 24, 32, 64, 1280]
        self.pre = nn.Sequential(nn.Conv2d(3, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True))
        self.stage1 = block(32, 16, stride=1, expansion=1)
        self.stage2 = block.repeat(16, 24, depth=2, stride=2, expansion=6)
        self.stage3 = block.repeat(24, 32, depth=3, stride=2, expansion=6)
        self.stage4 = block.repeat(32, 64, depth=4, stride=2, expansion=6)
        self.stage5 = block.repeat(64, 96, depth=3, stride=1, expansion=6)
        self.stage6 = block.repeat(96, 160, depth=3, stride=1, expansion=6)
        self.stage7 = block(160, 320, stride=1, expansion=6)
        self.conv1 = nn.Sequential(nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True))
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def classify(self, pooled: Tensor) -> Tensor:
        return self.conv2(pooled[:, :, None, None]).flatten(1)

    def forward(self, x: Tensor) -> Output:
        x0 = self.pre(x)
        x2 = self.stage2(self.stage1(x0))
        x3 = self.stage3(x2)
        x4 = self.stage4(x3)
        last = self.conv1(self.stage7(self.stage6(self.stage5(x4))))
        pooled = global_pool(last)
        return Output(self.classify(pooled), {"feats": [x0, x2, x3, x4, last], "pooled_feat": pooled})

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        last = self.conv1[:2]
        return [
            self.pre[:2],
            lambda x: self.stage2(self.stage1(F.relu6(x))),
            self.stage3,
            self.stage4,
            lambda x: last(self.stage7(self.stage6(self.stage5(x)))),
        ]

    def head(self, x: Tensor) -> Tensor:
        return self.classify(global_pool(F.relu6(x)))
