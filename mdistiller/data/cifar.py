"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the official Python or binary files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from mdistiller.data.build import DATASETS
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.errors import UserError

SIZE = 32
PIXELS = 3 * SIZE * SIZE


@dataclass(frozen=True)
class Layout:
    """The files of a CIFAR data set and the format of its binary files."""

    name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    python_folder: str  # of the files that torchvision reads
    binary_folder: str
    train_files: tuple[tuple[str, int], ...]  # with the number of images
    test_files: tuple[tuple[str, int], ...]
    names_file: str
    label_bytes: int  # before the pixels of an image; the last one is the class

    @property
    def reader(self) -> type:
        """The class of torchvision that reads the Python files and knows their checksums; its import takes seconds."""
        from torchvision import datasets

        return getattr(datasets, self.name.upper())


CIFAR100 = Layout(
    name="cifar100",
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    train_files=(("train.bin", 50000),),
    test_files=(("test.bin", 10000),),
    names_file="fine_label_names.txt",
    label_bytes=2,  # coarse, fine
)
CIFAR10 = Layout(
    name="cifar10",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    train_files=tuple((f"data_batch_{number}.bin", 10000) for number in range(1, 6)),
    test_files=(("test_batch.bin", 10000),),
    names_file="batches.meta.txt",
    label_bytes=1,
)


@DATASETS.register("cifar100")
def cifar100(cfg: CfgNode, device: torch.device | str) -> InMemoryData:
    """CIFAR-100, 50,000 training and 10,000 test images of 100 classes."""
    return InMemoryData(read_cifar(CIFAR100, cfg.DATASET.ROOT, cfg.DATASET.DOWNLOAD), cfg, device)


@DATASETS.register("cifar10")
def cifar10(cfg: CfgNode, device: torch.device | str) -> InMemoryData:
    """CIFAR-10, 50,000 training and 10,000 test images of 10 classes."""
    return InMemoryData(read_cifar(CIFAR10, cfg.DATASET.ROOT, cfg.DATASET.DOWNLOAD), cfg, device)


def read_cifar(layout: Layout, root: str | Path, download: bool) -> ImageSource:
    """The data set from the Python or binary files in `root`, or downloaded as Python files.

    Raises UserError if there are neither, or with the name of a damaged or missing file.
    """
    root = Path(root)
    python, binary = root / layout.python_folder, root / layout.binary_folder
    if python.is_dir() or (download and not binary.is_dir()):
        train, test, classes = _read_python(layout, root, download)
    elif binary.is_dir():
        train, test = (_read_binary(layout, binary, files) for files in (layout.train_files, layout.test_files))
        classes = _read_names(layout, binary / layout.names_file)
    else:
        raise UserError(
            f"DATASET.ROOT {root}: {layout.name} is missing, expected {python.name}/ or {binary.name}/ in it; set "
            "DATASET.ROOT to the folder that contains one of them, or DATASET.DOWNLOAD True"
        )
    return ImageSource(
        name=layout.name,
        family="cifar",
        mean=layout.mean,
        std=layout.std,
        num_classes=layout.num_classes,
        classes=classes,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )


def _read_python(layout, root, download):
    from torchvision.datasets.utils import check_integrity

    reader, folder = layout.reader, root / layout.python_folder
    try:
        train, test = (reader(str(root), train=is_train, download=download) for is_train in (True, False))
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(f"DATASET.DOWNLOAD: {reader.url} could not be downloaded to {root}: {error}") from error
        files = reader.train_list + reader.test_list + [[reader.meta["filename"], reader.meta["md5"]]]
        for name, checksum in files:
            if not check_integrity(str(folder / name), checksum):
                state = "is damaged (wrong MD5)" if (folder / name).exists() else "is missing"
                raise UserError(f"{folder / name} {state}: delete {folder} and set DATASET.DOWNLOAD True") from error
        raise
    arrays = [(data.data, np.array(data.targets, np.int64)) for data in (train, test)]
    return *arrays, tuple(train.classes)


def _read_binary(layout, folder, files):
    """Images (N, 32, 32, 3) and labels (N,) of binary files; per image, labels and then red, green and blue planes."""
    images, labels = [], []
    for name, number in files:
        path, size = folder / name, layout.label_bytes + PIXELS
        if not path.is_file():
            raise UserError(f"{path} is missing: unpack the official {layout.binary_folder} again")
        if path.stat().st_size != number * size:
            raise UserError(
                f"{path} is damaged: {path.stat().st_size} bytes, expected {number * size} ({number} images)"
            )
        rows = np.fromfile(path, np.uint8).reshape(number, size)
        labels.append(rows[:, layout.label_bytes - 1].astype(np.int64))
        if labels[-1].max() >= layout.num_classes:
            raise UserError(f"{path} is damaged: label {labels[-1].max()}, expected 0..{layout.num_classes - 1}")
        images.append(rows[:, layout.label_bytes :].reshape(number, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
    return (images[0] if len(images) == 1 else np.concatenate(images)), np.concatenate(labels)


def _read_names(layout, path):
    """Class names from a file with one per line, or None if the list is not complete."""
    names = tuple(path.read_text(errors="replace").split()) if path.is_file() else ()
    return names if len(names) == layout.num_classes else None
