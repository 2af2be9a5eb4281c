"""ShuffleNet V2, size 1 (Ma et al., ECCV 2018, arXiv:1807.11164), with a 1x1 stem and no pooling for small images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import SMALL_IMAGES, Network, Output, global_pool, register_model, run_stages

STEM, LAST = 24, 1024
WIDTHS, DEPTHS = (116, 232, 464), (4, 8, 4)


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class BasicBlock(nn.Module):
    """Returns one half of the channels unchanged, and the other half after convolutions, before its last ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        return kept, self.bn3(self.conv3(out))


class DownBlock(nn.Module):
    """Halves the size of the map; returns the left branch, and the right branch before its last ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = depthwise(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        return left, self.bn5(self.conv5(right))


class ShuffleStage(nn.Sequential):
    """(B, C, H, W) -> (output, pre-activation of the last block).

    Both have the same channels in a different order: the output is shuffled, the pre-activation is not. The first half
    of the pre-activation has passed its activation already.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self:
            left, right = block(x)
            # concatenates and shuffles in two groups with one copy: channels of left and right alternate
            x = torch.stack((left, F.relu(right)), dim=2).flatten(1, 2)
        return x, torch.cat((left, right), dim=1)


@register_model("ShuffleV2", family=SMALL_IMAGES)
class ShuffleNetV2(Network):
    """`pooled_feat` has 1024 channels, more than the last of `feats`, because a 1x1 convolution is between them."""

    stage_kind = "after_relu"

    def __init__(self, num_classes: int):
        super().__init__()
        self.stage_channels = [STEM, *WIDTHS]
        self.conv1 = pointwise(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        channels = STEM
        for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), start=1):
            blocks = [DownBlock(channels, width), *(BasicBlock(width) for _ in range(depth - 1))]
            self.add_module(f"layer{level}", ShuffleStage(*blocks))
            channels = width
        self.conv2 = pointwise(channels, LAST)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def expand(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def forward(self, x: Tensor) -> Output:
        stem = self.stem(x)
        x, feats, preact_feats = run_stages(stem, [self.layer1, self.layer2, self.layer3], stem)
        pooled = global_pool(self.expand(x))
        return Output(self.linear(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled})

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        def last(x):
            return self.expand(self.layer3(x)[0])

        return [self.stem, lambda x: self.layer1(x)[0], lambda x: self.layer2(x)[0], last]

    def head(self, x: Tensor) -> Tensor:
        return self.linear(global_pool(F.relu(x)))
