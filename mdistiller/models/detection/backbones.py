"""Backbones of detectors with a feature pyramid: images (B, 3, H, W) -> maps p2..p6 with strides 4 to 64."""

import math
from collections.abc import Callable

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.ops import FrozenBatchNorm2d

from mdistiller.errors import UserError
from mdistiller.models.detection import LEVELS

DEPTHS = {"r18": (2, 2, 2, 2), "r34": (3, 4, 6, 3), "r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}
BLOCKS = {"r18": BasicBlock, "r34": BasicBlock, "r50": Bottleneck, "r101": Bottleneck}
MOBILENET_TAPS = (3, 6, 13, 17)  # the last layers with 24, 32, 96 and 320 channels, at strides 4, 8, 16 and 32
NAMES = (*DEPTHS, "mv2")
GROUPS = 32  # of a group norm; fewer if the number of channels is not a multiple of it
STEM_CHANNELS = 64


def norm_layer(kind: str) -> Callable[[int], nn.Module]:
    """A function channels -> norm layer for a value of MODEL.NORM: frozen, bn, sync or gn."""
    return {"frozen": FrozenBatchNorm2d, "bn": nn.BatchNorm2d, "sync": nn.SyncBatchNorm, "gn": _group_norm}[kind]


def _group_norm(channels):
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


class ResNetBody(nn.Module):
    """The convolutional part of a ResNet (He et al., arXiv:1512.03385), with torchvision's names of parameters.

    All widths are `width` / 64 times those of the paper, whereas torchvision's class has a fixed width of the stem.
    `stride_in_1x1` moves the stride of a stage from the 3x3 convolution to the first 1x1 convolution of its bottleneck,
    as in the networks trained by MSRA. It only holds the layers: torchvision's `BackboneWithFPN` runs them and reads
    the maps of the four stages, whose numbers of channels are `channels`.
    """

    def __init__(self, name: str, width: int, norm, stride_in_1x1: bool):
        super().__init__()
        block, channels = BLOCKS[name], width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, depth in enumerate(DEPTHS[name]):
            planes, stride, blocks = width * 2**stage, 2 if stage else 1, []
            for place in range(depth):
                downsample = None
                if place == 0 and (stride > 1 or channels != planes * block.expansion):
                    downsample = nn.Sequential(conv1x1(channels, planes * block.expansion, stride),
                                               norm(planes * block.expansion))
                blocks.append(block(channels, planes, stride if place == 0 else 1, downsample, norm_layer=norm))
                channels = planes * block.expansion
            if stride_in_1x1 and block is Bottleneck:
                blocks[0].conv1.stride, blocks[0].conv2.stride = (stride, stride), (1, 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = [width * 2**stage * block.expansion for stage in range(4)]
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet_fpn(name: str, width: float, norm, stride_in_1x1: bool, out_channels: int, freeze: int) -> BackboneWithFPN:
    """A ResNet with a feature pyramid. The first `freeze` of stem and stages are frozen (detectron2's FREEZE_AT).

    `width` multiplies all numbers of channels of the ResNet.
    """
    body = ResNetBody(name, _width(STEM_CHANNELS * width), norm, stride_in_1x1)
    for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")[: freeze + 1 if freeze else 0]:
        getattr(body, part).requires_grad_(False)
    return_layers = {f"layer{stage + 1}": level for stage, level in enumerate(LEVELS)}
    return BackboneWithFPN(body, return_layers, body.channels, out_channels)


def mobilenet_fpn(width: float, norm, out_channels: int) -> BackboneWithFPN:
    """A MobileNetV2 (Sandler et al., arXiv:1801.04381) up to its layer of 320 channels, with a feature pyramid.

    `mobilenet_backbone` of torchvision takes the maps from other layers.
    """
    layers = MobileNetV2(width_mult=width, norm_layer=norm).features
    channels = [_last_channels(layers[place]) for place in MOBILENET_TAPS]
    return_layers = {str(place): level for place, level in zip(MOBILENET_TAPS, LEVELS, strict=True)}
    return BackboneWithFPN(layers, return_layers, channels, out_channels)


def build_backbone(
    name: str, norm: str, width: float, out_channels: int, stride_in_1x1: bool, freeze: int
) -> BackboneWithFPN:
    """The backbone with its pyramid, by name: r18, r34, r50, r101 or mv2. Raises UserError for another name.

    `stride_in_1x1` and `freeze` apply to ResNets only. Frozen norms need pretrained weights: with random weights, the
    values of the maps grow from layer to layer.
    """
    if name not in NAMES:
        raise UserError(f"unknown detector {name!r}: expected one of {', '.join(NAMES)}")
    if name == "mv2":
        backbone = mobilenet_fpn(width, norm_layer(norm), out_channels)
    else:
        backbone = resnet_fpn(name, width, norm_layer(norm), stride_in_1x1, out_channels, freeze)
    return backbone


def _width(channels: float) -> int:
    """The nearest multiple of 8, which suits group norms and fast kernels."""
    return max(8, 8 * round(channels / 8))


def _last_channels(block: nn.Module) -> int:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
