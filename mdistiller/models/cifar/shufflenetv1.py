"""ShuffleNet V1, three groups (Zhang et al., CVPR 2018, arXiv:1707.01083), as the CIFAR-100 benchmarks use it.

Departs from the paper as these benchmarks do: a 1x1 stem without pooling, a ReLU after the depthwise convolution, and
in blocks of stride 2 a bottleneck with a quarter of the branch's channels instead of the block's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import SMALL_IMAGES, Network, Output, Stage, global_pool, register_model, run_stages

STEM, GROUPS = 24, 3
WIDTHS, DEPTHS = (240, 480, 960), (4, 8, 4)


class Bottleneck(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns the pre-activation.

    With stride 2, the average-pooled input is concatenated; with stride 1, the input is added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        branch = out_channels - in_channels if stride == 2 else out_channels
        hidden = branch // 4
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = out.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)  # the channels of the groups in turn
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), dim=1)
        return out + x


@register_model("ShuffleV1", family=SMALL_IMAGES)
class ShuffleNetV1(Network):
    stage_kind = "before_relu"

    def __init__(self, num_classes: int):
        super().__init__()
        self.stage_channels = [STEM, *WIDTHS]
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        channels = STEM
        for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), start=1):
            blocks = [Bottleneck(channels, width, stride=2)]
            blocks += [Bottleneck(width, width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{level}", Stage(*blocks))
            channels = width
        self.linear = nn.Linear(channels, num_classes)

    def layers(self) -> list[Stage]:
        return [self.layer1, self.layer2, self.layer3]

    def forward(self, x: Tensor) -> Output:
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x, feats, preact_feats = run_stages(stem, self.layers(), stem)
        pooled = global_pool(x)
        return Output(self.linear(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled})

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        def stage(layer):
            return lambda x: layer.preactivation(F.relu(x))

        return [lambda x: self.bn1(self.conv1(x)), *map(stage, self.layers())]

    def head(self, x: Tensor) -> Tensor:
        return self.linear(global_pool(F.relu(x)))
