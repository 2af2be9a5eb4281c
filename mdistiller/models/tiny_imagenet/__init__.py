"""Networks for Tiny-ImageNet: those of CIFAR, which accept any image size, but a different MobileNetV2."""

from mdistiller.models.tiny_imagenet import mobilenetv2  # registers its network
