"""MobileNetV1 (Howard et al., 2017, arXiv:1704.04861) for ImageNet.

Some forks of mdistiller register this network as "MobileNetV2"; that name works too, so that their configs run.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import UserError
from mdistiller.models.base import STEM_APART, Network, Output, global_pool, register_model

STEM = 32
BLOCKS = (  # output channels, stride; the first block is model.1
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
LEVELS = (3, 5, 11, 13)  # entries of `model` whose outputs are the levels of `feats`


class SeparableBlock(nn.Sequential):
    """Depthwise 3x3 with the stride, then 1x1, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def preactivation(self, x: Tensor) -> Tensor:
        *layers, _ = self
        for layer in layers:
            x = layer(x)
        return x


class MobileNetV1(Network):
    """Thirteen depthwise-separable blocks.

    As in the public code, `feats` have four levels without the stem, which is given apart. Departs from it in methods:
    they see the stem as level 0 (`with_stem`), so those that skip it compare stage k with stage k of a ResNet. In the
    public code they skip a stage and compare stage k + 1.
    """

    stage_kind = "after_relu"

    def __init__(self, num_classes: int, pretrained: bool = False):
        if pretrained:
            raise UserError("no pretrained weights for imagenet model 'MobileNetV1': use your own checkpoint")
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
        )
        channels, blocks = STEM, []
        for width, stride in BLOCKS:
            blocks.append(SeparableBlock(channels, width, stride))
            channels = width
        self.model = nn.Sequential(stem, *blocks)
        self.fc = nn.Linear(channels, num_classes)
        self.stage_channels = [BLOCKS[level - 1][0] for level in LEVELS]

    def forward(self, x: Tensor) -> Output:
        first, *blocks = self.model
        x = stem = first(x)
        feats, preact_feats = [], []
        for index, block in enumerate(blocks, start=1):
            if index not in LEVELS:
                x = block(x)
                continue
            preact = block.preactivation(x)
            x = F.relu(preact)  # not in place, because `preact` is returned too
            feats.append(x)
            preact_feats.append(preact)
        pooled = global_pool(x)
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled, STEM_APART: stem}
        return Output(self.fc(pooled), features)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        ends = (1, *(level + 1 for level in LEVELS))  # the stem is a stage here
        return [self.model[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)]

    def head(self, x: Tensor) -> Tensor:
        return self.fc(global_pool(F.relu(x)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [self.model[level][-2] for level in LEVELS]


for _name in ("MobileNetV1", "MobileNetV2"):
    register_model(_name, family="imagenet")(MobileNetV1)
