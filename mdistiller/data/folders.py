"""ImageNet and folders of one's own: train/<class>/* and val/<class>/*."""

import logging
from pathlib import Path

import torch
from PIL import Image, ImageOps
from yacs.config import CfgNode

from mdistiller.data.base import Data
from mdistiller.data.build import DATASETS
from mdistiller.data.files import class_names, decode_all, find_folder, scan_classes
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.data.streamed import StreamedData
from mdistiller.errors import UserError

log = logging.getLogger("mdistiller")
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of ImageNet
IMAGENET_CLASSES = 1000
IN_MEMORY = 64  # pixels a side


@DATASETS.register("imagenet")
def imagenet(cfg: CfgNode, device: torch.device | str) -> StreamedData:
    """ImageNet (ILSVRC 2012), 1,281,167 training images and, to test on, the 50,000 of its validation set.

    DATASET.ROOT holds imagenet/ (or imagenet-1k/, ...), or is it. A part of its classes will do, and is warned about.
    """
    folder = find_folder(cfg.DATASET.ROOT, "imagenet", "imagenet*", val=cfg.DATASET.VAL_FOLDER)
    train, test, classes = _scan(folder, cfg.DATASET.VAL_FOLDER)
    if len(classes) != IMAGENET_CLASSES:
        log.warning("%s has %d classes, not the 1000 of ImageNet", folder, len(classes))
    return StreamedData(train, test, cfg, device, name="imagenet", family="imagenet", classes=classes, **STATISTICS)


@DATASETS.register("imagefolder")
def imagefolder(cfg: CfgNode, device: torch.device | str) -> Data:
    """A user's own images, of any size: DATASET.ROOT holds train/ and val/ (or another
    DATASET.VAL_FOLDER) with a folder for each class.

    Up to 64 pixels (DATASET.IMAGE_SIZE) they live in memory, are treated as those of CIFAR and meet its networks;
    above, as those of ImageNet. Statistics are ImageNet's.
    """
    val = cfg.DATASET.VAL_FOLDER
    train, test, classes = _scan(find_folder(cfg.DATASET.ROOT, "imagefolder", val=val), val)
    size, name = cfg.DATASET.IMAGE_SIZE, "imagefolder"
    if size > IN_MEMORY:
        return StreamedData(train, test, cfg, device, name=name, family="imagenet", classes=classes, **STATISTICS)

    def to_size(image):
        """The middle square, brought to size once."""
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)

    (train_images, train_labels), (test_images, test_labels) = decode_all(
        (train, test), size, to_size, cfg.DATASET.SKIP_BROKEN
    )
    source = ImageSource(
        name=name, family="cifar", num_classes=len(classes), classes=classes, train_images=train_images,
        train_labels=train_labels, test_images=test_images, test_labels=test_labels, **STATISTICS,
    )
    return InMemoryData(source, cfg, device)


def _scan(folder: Path, val: str):
    classes = class_names(folder / "train")
    if len(classes) < 2:
        raise UserError(f"{folder / 'train'}: 1 class ({classes[0]}); expected two or more to tell apart")
    return scan_classes(folder / "train", classes), scan_classes(folder / val, classes), classes
