"""Handwritten digits of scikit-learn, a data set without download."""

import gzip

import numpy as np
import torch
import torch.nn.functional as F
from yacs.config import CfgNode

from mdistiller.data.build import DATASETS
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.data.splits import ranks_in_class
from mdistiller.libraries import check_installed

TRAIN_PER_CLASS = 30
SIZE = 32
WHITE = 16  # the largest value of a pixel in scikit-learn


@DATASETS.register("digits")
def digits(cfg: CfgNode, device: torch.device | str) -> InMemoryData:
    """The 1,797 scanned digits of scikit-learn (Alpaydin & Kaynak, UCI, 1998), with a small training set.

    Each 8x8 scan is resized to 32x32 by bilinear interpolation and converted to three equal channels of 8 bits. A fixed
    choice of 30 images per class (300) is the training set, and the other 1,497 are the test set. With so few training
    images, networks of different size differ in accuracy: resnet20 reaches 96.8 % (60 epochs), resnet8 about 92 % (30
    epochs), and 94 to 95 % if resnet20 teaches it. The augmentation is cropping with a padding of 4 (one pixel of the
    scan), without flips, because a mirrored digit is not a digit. Nothing is downloaded.
    """
    return InMemoryData(read_digits(), cfg, device)


def read_digits() -> ImageSource:
    """The images, labels and metadata of the data set."""
    scans, labels = read_scans()
    small = torch.from_numpy(scans).float()[:, None]
    # in units of 1/64 of a grey level, which float32 represents exactly, so that all machines round equally
    large = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    gray = (large * 255 / WHITE).round().to(torch.uint8).numpy()
    images = np.repeat(gray.transpose(0, 2, 3, 1), 3, axis=3)
    train = ranks_in_class(labels) < TRAIN_PER_CLASS
    return ImageSource(
        name="digits",
        family="cifar",
        mean=(0.3053,) * 3,
        std=(0.3250,) * 3,
        num_classes=10,
        classes=tuple("0123456789"),
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[~train],
        test_labels=labels[~train],
        flip=False,
    )


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans (1797, 8, 8) float64, 0 to 16, and their digits (1797,) int64, from scikit-learn's own file.

    What `sklearn.datasets.load_digits` returns, without the second or two that importing scikit-learn takes.
    """
    package = check_installed("sklearn", "DATASET.TYPE digits").parent
    with gzip.open(package / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
