"""Tiny-ImageNet (Le & Yang, Stanford CS231N, 2015): 200 classes at 64x64, from its official layout."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.data.build import DATASETS
from mdistiller.data.files import ImageFiles, class_names, decode_all, find_folder, image_files, scan_classes
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.errors import UserError, counted

SIZE = 64
ANNOTATIONS = "val_annotations.txt"


@DATASETS.register("tiny_imagenet")
def tiny_imagenet(cfg: CfgNode, device: torch.device | str) -> InMemoryData:
    """Tiny-ImageNet: 100,000 training images, and the 10,000 validation images as the test set, all in memory.

    DATASET.ROOT contains tiny-imagenet-200/ (or is this folder), with train/<wnid>/images/* and val/images/* and
    val_annotations.txt. Classes are numbered in order of their WordNet ids, as by torchvision's ImageFolder in
    mdistiller.
    """
    folder = find_folder(cfg.DATASET.ROOT, "tiny_imagenet", "tiny-imagenet-200")
    classes = class_names(folder / "train")
    sets = scan_classes(folder / "train", classes), read_annotations(folder / "val", classes)
    (train_images, train_labels), (test_images, test_labels) = decode_all(
        sets, SIZE, _of_size, cfg.DATASET.SKIP_BROKEN
    )
    source = ImageSource(
        name="tiny_imagenet",
        family="tiny_imagenet",
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),  # those of mdistiller, within images; over all pixels they are 0.277
        num_classes=len(classes),
        classes=classes,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    return InMemoryData(source, cfg, device)


def read_annotations(folder: Path, classes: tuple[str, ...]) -> ImageFiles:
    """The validation images in the order of val_annotations.txt, whose lines have file, class and box between tabs.

    If the images were sorted into class folders, as mdistiller needs them, these are read. Raises UserError with the
    line number for a class that is not in `classes`.
    """
    path, label = folder / ANNOTATIONS, {name: number for number, name in enumerate(classes)}
    if not path.is_file():
        if (folder / classes[0]).is_dir():
            return scan_classes(folder, classes)
        raise UserError(f"{path} is missing: unpack the official tiny-imagenet-200.zip again")
    names, labels = [], []
    for number, line in enumerate(path.read_text(errors="surrogateescape").splitlines(), start=1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        if wnid not in label:
            raise UserError(f"{path}, line {number}: class {wnid!r}, expected one of the folders in train/")
        names.append(f"images/{name}")
        labels.append(label[wnid])
    missing = set(range(len(classes))) - set(labels)
    if missing:
        raise UserError(f"{path}: no images of {counted(len(missing), 'class')} of train/, such as "
                        f"{classes[min(missing)]}")
    return image_files(folder, names, np.array(labels))


def _of_size(image: Image.Image) -> Image.Image:
    if image.size != (SIZE, SIZE):
        raise ValueError(f"{image.width}x{image.height} pixels, expected {SIZE}x{SIZE}")
    return image
