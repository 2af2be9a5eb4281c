"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146), without dropout.

Departs from the public code: the batch norms that give `preact_feats` run only once. With a second call, their running
statistics would be updated twice in a training step.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import SMALL_IMAGES, Network, Output, global_pool, init_convs, register_model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU; for a new width, the first ReLU's output is projected."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.equal_widths = in_channels == out_channels
        if not self.equal_widths:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_bn1(x, self.bn1(x))

    def after_bn1(self, x: Tensor, normed: Tensor) -> Tensor:
        """The block without bn1, for callers that need `normed` = bn1(x) too."""
        activated = F.relu(normed)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        return self.conv2(out) + (x if self.equal_widths else self.convShortcut(activated))


class WideStage(nn.Module):
    """Blocks, of which the first has the stride: (B, C, H, W) -> (output, bn1 of the input). The output has no ReLU."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, stride: int):
        super().__init__()
        first = BasicBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *rest = self.layer
        normed = first.bn1(x)
        x = first.after_bn1(x, normed)
        for block in rest:
            x = block(x)
        return x, normed


class WideResNet(Network):
    """6n+4 layers in stages `width` times as wide as those of a CIFAR ResNet.

    `feats` are the outputs of stages before batch norm and ReLU; `preact_feats` are the same after the batch norm of
    the next stage.
    """

    stage_kind = "before_bn"

    def __init__(self, depth: int, width: int, num_classes: int):
        super().__init__()
        blocks = (depth - 4) // 6
        channels = self.stage_channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.block1 = WideStage(channels[0], channels[1], blocks, stride=1)
        self.block2 = WideStage(channels[1], channels[2], blocks, stride=2)
        self.block3 = WideStage(channels[2], channels[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Output:
        stem = self.conv1(x)
        x1, _ = self.block1(stem)
        x2, preact1 = self.block2(x1)
        x3, preact2 = self.block3(x2)
        preact3 = self.bn1(x3)
        pooled = global_pool(F.relu(preact3))
        features = {
            "feats": [stem, x1, x2, x3],
            "preact_feats": [stem, preact1, preact2, preact3],
            "pooled_feat": pooled,
        }
        return Output(self.fc(pooled), features)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        def last(x):
            return self.bn1(self.block3(x)[0])

        return [self.conv1, lambda x: self.block1(x)[0], lambda x: self.block2(x)[0], last]

    def head(self, x: Tensor) -> Tensor:
        return self.fc(global_pool(F.relu(x)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]


def _register(depth: int, width: int) -> None:
    @register_model(f"wrn_{depth}_{width}", family=SMALL_IMAGES)
    def build(num_classes: int) -> WideResNet:
        return WideResNet(depth, width, num_classes)


for _depth, _width in ((16, 1), (16, 2), (28, 4), (40, 1), (40, 2)):
    _register(_depth, _width)
