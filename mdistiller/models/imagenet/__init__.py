"""Networks for ImageNet-sized images: torchvision's ResNets and MobileNetV1."""

from mdistiller.models.imagenet import mobilenetv1, resnet  # each registers its networks
