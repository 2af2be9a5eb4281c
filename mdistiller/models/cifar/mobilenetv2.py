"""MobileNetV2 at half width (Sandler et al., CVPR 2018, arXiv:1801.04381), as the CIFAR-100 benchmarks use it.

Departs from the paper as these benchmarks do: ReLU instead of ReLU6, stride 1 in the group of 24 channels (at full
width), and a first 1x1 convolution also in the block without expansion.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import Network, Output, global_pool, init_convs, register_model

GROUPS = (  # expansion, channels at full width, number of blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
WIDTH = 0.5
STEM, LAST = 16, 1280
TAPPED = (1, 2, 4, 6)  # groups whose outputs are levels 1 to 4 of `feats`


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1 to the output channels without an activation."""

    activation = nn.ReLU
    bias = False
    body_name = "conv"  # its name in state dicts

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * in_channels
        self.add = stride == 1 and in_channels == out_channels
        body = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=self.bias),
            nn.BatchNorm2d(hidden),
            self.activation(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=self.bias),
            nn.BatchNorm2d(hidden),
            self.activation(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=self.bias),
            nn.BatchNorm2d(out_channels),
        )
        self.add_module(self.body_name, body)

    def forward(self, x: Tensor) -> Tensor:
        out = getattr(self, self.body_name)(x)
        return x + out if self.add else out

    @classmethod
    def repeat(cls, in_channels: int, out_channels: int, depth: int, stride: int, expansion: int) -> nn.Sequential:
        """`depth` blocks, of which the first has the stride."""
        first = cls(in_channels, out_channels, stride, expansion)
        return nn.Sequential(first, *(cls(out_channels, out_channels, 1, expansion) for _ in range(depth - 1)))


@register_model("MobileNetV2")
class MobileNetV2(Network):
    """`feats` are the linear bottlenecks after groups 1, 2, 4 and 6, which can be negative. No `preact_feats`."""

    stage_kind = "before_relu"

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
        )
        channels, widths, groups = STEM, [], []
        for expansion, full_width, depth, stride in GROUPS:
            widths.append(int(WIDTH * full_width))
            groups.append(InvertedResidual.repeat(channels, widths[-1], depth, stride, expansion))
            channels = widths[-1]
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels, LAST, 1, bias=False), nn.BatchNorm2d(LAST), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        self.stage_channels = [STEM, *(widths[group] for group in TAPPED)]
        init_convs(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor) -> Output:
        x = self.conv1(x)
        feats = [x]
        for index, group in enumerate(self.blocks):
            x = group(x)
            if index in TAPPED:
                feats.append(x)
        pooled = global_pool(self.conv2(x))
        return Output(self.classifier(pooled), {"feats": feats, "pooled_feat": pooled})

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        groups, last = self.blocks, self.conv2[:2]
        return [
            self.conv1[:2],
            lambda x: groups[1](groups[0](F.relu(x))),
            groups[2],
            lambda x: groups[4](groups[3](x)),
            lambda x: last(groups[6](groups[5](x))),
        ]

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(global_pool(F.relu(x)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch norms of the groups in `TAPPED`. Despite the name, no activation follows them."""
        return [self.blocks[group][-1].conv[-1] for group in TAPPED]
