"""ResNet18 to ResNet101 for ImageNet, with the keys, shapes and outputs of torchvision and the features of each stage.

The blocks are those of `mdistiller.models.resnet`, which return pre-activations; torchvision has pretrained weights.
"""

from urllib.error import URLError

import torch.nn.functional as F
from torch import Tensor

from mdistiller.errors import UserError
from mdistiller.models.base import register_model
from mdistiller.models.resnet import BasicBlock, Block, Bottleneck, ResNet
from mdistiller.models.wrapped import check_cached

WIDTHS = (64, 64, 128, 256, 512)
WEIGHTS = "IMAGENET1K_V1"  # the teachers of the papers: top-1 of 69.75 / 73.31 / 76.16 for ResNet 18 / 34 / 50
WEIGHT_CLASSES = 1000


class ImageNetResNet(ResNet):
    """`feats[0]` is the stem before the max-pool. `get_bn_before_relu` has all four stages (in the public code, the
    first one is missing)."""

    stem_kernel, stem_stride = 7, 2

    def reduce(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=2, padding=1)


def _pretrained_weights(name: str, num_classes: int) -> dict[str, Tensor]:
    """torchvision's weights for ImageNet. Raises UserError for another number of classes, or if the download fails."""
    if num_classes != WEIGHT_CLASSES:
        raise UserError(f"pretrained {name} has {WEIGHT_CLASSES} classes, not {num_classes}")
    return library_weights(name.lower(), "or set DISTILLER.TEACHER_CHECKPOINT")


def library_weights(name: str, otherwise: str) -> dict[str, Tensor]:
    """The weights of a torchvision network trained on ImageNet, downloaded once and verified.

    Raises UserError, which ends with `otherwise`, if the download fails, and for another file in its place.
    """
    import torchvision  # here: it takes seconds, and only its weights are needed

    weights = torchvision.models.get_model_weights(name)[WEIGHTS]
    check_cached(weights.url)
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except URLError as error:
        raise UserError(
            f"cannot download {weights.url} ({error.reason}): put the file in ~/.cache/torch/hub/checkpoints, "
            f"{otherwise}"
        ) from error


def _register(name: str, block: type[Block], depths: tuple[int, ...]) -> None:
    @register_model(name, family="imagenet")
    def build(num_classes: int, pretrained: bool = False) -> ImageNetResNet:
        network = ImageNetResNet(block, WIDTHS, depths, num_classes)
        if pretrained:
            network.load_state_dict(_pretrained_weights(name, num_classes))
        return network


_register("ResNet18", BasicBlock, (2, 2, 2, 2))
_register("ResNet34", BasicBlock, (3, 4, 6, 3))
_register("ResNet50", Bottleneck, (3, 4, 6, 3))
_register("ResNet101", Bottleneck, (3, 4, 23, 3))
