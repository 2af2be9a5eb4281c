"""Data sets and their batches. A batch is a dict: of images with image, target, index and what a method asks for."""

from mdistiller.data import (  # each module registers its data sets
    cifar,
    coco,
    digits,
    digits_detection,
    folders,
    instructions,
    tiny_imagenet,
    words,
)
from mdistiller.data.build import DATASETS, build_data
from mdistiller.data.info import DataInfo

__all__ = ["DATASETS", "DataInfo", "build_data"]
