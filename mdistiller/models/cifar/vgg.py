"""VGG with batch norm for small images (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556).

Departs from the paper as the CIFAR-100 benchmarks do: batch norm after each convolution, a global average instead of
the last max-pool, and one linear layer as the classifier.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import SMALL_IMAGES, Network, Output, global_pool, init_convs, register_model

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _block(channels: int, width: int, depth: int) -> nn.Sequential:
    """`depth` times convolution, batch norm and ReLU, but without the last ReLU."""
    layers = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers[:-1])


def _shrink(x: Tensor, level: int) -> Tensor:
    """2x2 max-pool before block `level`; before block 4 only if the map has at least 8 rows (the image 64)."""
    return F.max_pool2d(x, 2) if level < 4 or x.shape[2] >= 8 else x


class VGG(Network):
    """Five blocks with `depths` convolutions. `feats` are the maps before the max-pool that follows a block."""

    stage_kind = "before_relu"

    def __init__(self, depths: tuple[int, ...], num_classes: int):
        super().__init__()
        self.stage_channels = list(WIDTHS)
        for level, (channels, width, depth) in enumerate(zip((3, *WIDTHS), WIDTHS, depths, strict=False)):
            self.add_module(f"block{level}", _block(channels, width, depth))
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def blocks(self) -> list[nn.Sequential]:
        """Blocks 1 to 4."""
        return [self.block1, self.block2, self.block3, self.block4]

    def forward(self, x: Tensor) -> Output:
        x = F.relu(self.block0(x), inplace=True)
        feats, preact_feats = [x], [x]  # level 0 is the same in both
        for level, block in enumerate(self.blocks(), 1):  # 1 by its place: so it compiles with PyTorch 2.4 too
            preact = block(_shrink(x, level))
            x = F.relu(preact)
            feats.append(x)
            preact_feats.append(preact)
        pooled = global_pool(x)
        return Output(self.classifier(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled})

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        def stage(level, block):
            return lambda x: block(_shrink(F.relu(x), level))

        return [self.block0, *(stage(level, block) for level, block in enumerate(self.blocks(), start=1))]

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(global_pool(F.relu(x)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [block[-1] for block in self.blocks()]


def _register(depth: int) -> None:
    @register_model(f"vgg{depth}", family=SMALL_IMAGES)
    def build(num_classes: int) -> VGG:
        return VGG(DEPTHS[depth], num_classes)


for _depth in DEPTHS:
    _register(_depth)
