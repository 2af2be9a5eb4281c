"""ResNets for 32x32 images (He et al., arXiv:1512.03385, section 4.2): three stages, 6n+2 layers.

The x4 networks have stages of four times and a stem of twice the width (Tian et al., arXiv:1910.10699). Departs from
the first paper as the benchmarks do: a shortcut that changes the shape is a 1x1 convolution with batch norm.
"""

from mdistiller.models.base import SMALL_IMAGES, register_model
from mdistiller.models.resnet import BasicBlock, ResNet

WIDTHS = (16, 16, 32, 64)
WIDTHS_X4 = (32, 64, 128, 256)


def _register(name: str, depth: int, widths: tuple[int, ...]) -> None:
    @register_model(name, family=SMALL_IMAGES)
    def build(num_classes: int) -> ResNet:
        return ResNet(BasicBlock, widths, depths=((depth - 2) // 6,) * 3, num_classes=num_classes)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    _register(f"resnet{_depth}", _depth, WIDTHS)
for _depth in (8, 32):
    _register(f"resnet{_depth}x4", _depth, WIDTHS_X4)
