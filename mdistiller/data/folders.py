"""ImageNet, and the user's own folders with train/<class>/* and val/<class>/*."""

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
IN_MEMORY = 64  # largest image size that is kept in memory, in pixels


@DATASETS.register("imagenet")
def imagenet(cfg: CfgNode, device: torch.device | str) -> StreamedData:
    """ImageNet (ILSVRC 2012): 1,281,167 training images, and the 50,000 validation images as the test set.

    DATASET.ROOT contains imagenet/ (or imagenet-1k/, ...), or is this folder. A subset of the classes is accepted
    with a warning, and tables mark its runs as runs on other data.
    """
    folder = find_folder(cfg.DATASET.ROOT, "imagenet", "imagenet*", val=cfg.DATASET.VAL_FOLDER)
    train, test, classes = _scan(folder, cfg.DATASET.VAL_FOLDER)
    if len(classes) != IMAGENET_CLASSES:
        log.warning("%s has %d classes, not the 1000 of ImageNet", folder, len(classes))
    return StreamedData(train, test, cfg, device, name="imagenet", family="imagenet", classes=classes, **STATISTICS)


@DATASETS.register("imagefolder")
def imagefolder(cfg: CfgNode, device: torch.device | str) -> Data:
    """The user's own images, of any size, in DATASET.ROOT.

    It contains train/ and val/ (or another DATASET.VAL_FOLDER), each with a folder for each class. With an image size
    (DATASET.IMAGE_SIZE) of up to 64 pixels, images are kept in memory, augmented like those of CIFAR, and used with its
    networks; larger ones are treated like those of ImageNet. The statistics are those of ImageNet.
    """
    val = cfg.DATASET.VAL_FOLDER
    train, test, classes = _scan(find_folder(cfg.DATASET.ROOT, "imagefolder", val=val), val)
    size, name = cfg.DATASET.IMAGE_SIZE, "imagefolder"
    if size > IN_MEMORY:
        return StreamedData(train, test, cfg, device, name=name, family="imagenet", classes=classes, **STATISTICS)

    def to_size(image):
        """The central square, resized."""
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
        raise UserError(f"{folder / 'train'}: 1 class ({classes[0]}); expected two or more")
    return scan_classes(folder / "train", classes), scan_classes(folder / val, classes), classes
