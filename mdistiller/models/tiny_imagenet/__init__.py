"""Tiny-ImageNet: the CIFAR networks, which take any image size, and a MobileNetV2 of its own."""

from mdistiller.models.tiny_imagenet import mobilenetv2  # (registers its network)
