"""Residual networks (He et al., CVPR 2016, arXiv:1512.03385) for all families, which set names and sizes."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import Network, Output, Stage, global_pool, init_convs, run_stages


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Base class of both blocks: a shortcut whose name in the state dict depends on the family."""

    expansion = 1

    def add_shortcut(self, name: str, in_channels: int, out_channels: int, stride: int) -> None:
        self.shortcut_name = name
        if stride == 1 and in_channels == out_channels:
            self.add_module(name, nn.Identity())
        else:
            projection = conv(in_channels, out_channels, 1, stride)
            self.add_module(name, nn.Sequential(projection, nn.BatchNorm2d(out_channels)))

    def shortcut_of(self, x: Tensor) -> Tensor:
        return getattr(self, self.shortcut_name)(x)


class BasicBlock(Block):
    """Two 3x3 convolutions; returns the sum before the last ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.add_shortcut(shortcut_name, in_channels, width, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out)) + self.shortcut_of(x)


class Bottleneck(Block):
    """1x1, 3x3 (with the stride) and 1x1 convolutions; returns the sum before the last ReLU.

    The paper has the stride in the first convolution; here it is where torchvision and the public code have it.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str):
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(shortcut_name, in_channels, out_channels, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out)) + self.shortcut_of(x)


class ResNet(Network):
    """A ResNet: `widths` are those of the stem and of each stage (before expansion), `depths` the blocks of a stage."""

    stage_kind = "after_relu"
    stem_kernel, stem_stride = 3, 1
    shortcut_name, classifier_name = "downsample", "fc"  # their names in state dicts

    def __init__(self, block: type[Block], widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int):
        super().__init__()
        channels, *stage_widths = widths
        self.conv1 = conv(3, channels, self.stem_kernel, self.stem_stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.stage_channels = [channels]
        for level, (width, depth) in enumerate(zip(stage_widths, depths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if level > 1 and index == 0 else 1
                blocks.append(block(channels, width, stride, self.shortcut_name))
                channels = width * block.expansion
            self.add_module(f"layer{level}", Stage(*blocks))
            self.stage_channels.append(channels)
        self.add_module(self.classifier_name, nn.Linear(channels, num_classes))
        init_convs(self)

    def layers(self) -> list[Stage]:
        return [getattr(self, f"layer{level}") for level in range(1, len(self.stage_channels))]

    def classifier(self, pooled: Tensor) -> Tensor:
        return getattr(self, self.classifier_name)(pooled)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def reduce(self, x: Tensor) -> Tensor:
        """The layers between the stem and the first stage."""
        return x

    def forward(self, x: Tensor) -> Output:
        stem = self.stem(x)
        x, feats, preact_feats = run_stages(self.reduce(stem), self.layers(), stem)
        pooled = global_pool(x)
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return Output(self.classifier(pooled), features)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        def activated(layer):
            return lambda x: F.relu(layer.preactivation(x), inplace=True)

        return [lambda x: self.reduce(self.stem(x)), *map(activated, self.layers())]

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(global_pool(F.relu(x)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [layer[-1].last_bn for layer in self.layers()]
