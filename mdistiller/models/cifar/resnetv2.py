"""ResNet18, 34 and 50 with a 3x3 stem and no max-pool, for small images.

"V2" is only the name of the file in which they were released; the blocks are those of arXiv:1512.03385.
"""

from mdistiller.models.base import SMALL_IMAGES, register_model
from mdistiller.models.resnet import BasicBlock, Block, Bottleneck, ResNet

WIDTHS = (64, 64, 128, 256, 512)


class ResNetV2(ResNet):
    shortcut_name, classifier_name = "shortcut", "linear"


def _register(name: str, block: type[Block], depths: tuple[int, ...]) -> None:
    @register_model(name, family=SMALL_IMAGES)
    def build(num_classes: int) -> ResNetV2:
        return ResNetV2(block, WIDTHS, depths, num_classes)


_register("ResNet18", BasicBlock, (2, 2, 2, 2))
_register("ResNet34", BasicBlock, (3, 4, 6, 3))
_register("ResNet50", Bottleneck, (3, 4, 6, 3))
