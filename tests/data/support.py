"""Small data sets for tests, and real ones if the folder that contains them is given."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.config import load_cfg
from mdistiller.data.memory import ImageSource, InMemoryData

REAL = os.environ.get("MDISTILLER_TEST_DATA")
BOTH = ("image", "image_strong")


def needs(folder: str):
    """A mark that skips a test unless the folder MDISTILLER_TEST_DATA contains this data set."""
    absent = not REAL or not (Path(REAL) / folder).is_dir()
    return pytest.mark.skipif(absent, reason=f"MDISTILLER_TEST_DATA does not name a folder that holds {folder}/")


needs_cifar100 = needs("cifar-100-binary")


def config(*opts) -> CfgNode:
    """The default configuration with overrides "KEY", value, ..."""
    return load_cfg(None, list(opts))


def num_eval(data, split: str = "test") -> int:
    """Number of images in a split."""
    return sum(len(batch["index"]) for batch in data.eval_batches(split))


def by_index(batches, key) -> torch.Tensor:
    """A quantity of each sample, sorted by index."""
    index = torch.cat([batch["index"] for batch in batches])
    return torch.cat([batch[key] for batch in batches])[index.argsort()]


def noise_source(num_train=50, num_test=23, num_classes=5, size=32, flip=True) -> ImageSource:
    """Images of noise, so that no two pixels match by chance; labels in turn."""
    rng = np.random.default_rng(0)
    return ImageSource(
        name="noise",
        family="cifar",
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        num_classes=num_classes,
        classes=None,
        train_images=rng.integers(0, 256, (num_train, size, size, 3), dtype=np.uint8),
        train_labels=np.arange(num_train) % num_classes,
        test_images=rng.integers(0, 256, (num_test, size, size, 3), dtype=np.uint8),
        test_labels=np.arange(num_test) % num_classes,
        flip=flip,
    )


def noise_data(*opts, batch_size=16, **source) -> InMemoryData:
    """`noise_source` as a run sees it, on the CPU."""
    return InMemoryData(noise_source(**source), config("SOLVER.BATCH_SIZE", batch_size, *opts), "cpu")


def write_image(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Save an image of smooth noise, in the format of the name; returns its pixels (H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image)


def write_folders(root: Path, per_class=(4, 2), classes=("ant", "bee", "cat"), suffix=".png") -> Path:
    """train/<class>/* and val/<class>/* with images of different sizes, all different; returns the root."""
    for split, number in zip(("train", "val"), per_class, strict=True):
        for label, name in enumerate(classes):
            for place in range(number):
                seed = 100 * label + 10 * place + (split == "val")
                write_image(root / split / name / f"{place}{suffix}", 60 + 11 * place, 90 - 7 * label, seed)
    return root
