"""Networks for CIFAR. State-dict keys and shapes equal those of the public CIFAR-100 teachers, which load strictly."""

from mdistiller.models.cifar import (  # each registers its networks
    mobilenetv2,
    resnet,
    resnetv2,
    shufflenetv1,
    shufflenetv2,
    vgg,
    wrn,
)
