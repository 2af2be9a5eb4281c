"""Small data sets for the tests, and the real CIFAR-100 where a folder that holds it is named."""

import os

import numpy as np
import pytest
from yacs.config import CfgNode

from mdistiller.config import load_cfg
from mdistiller.data.memory import ImageSource, InMemoryData

REAL = os.environ.get("MDISTILLER_TEST_DATA")
needs_cifar100 = pytest.mark.skipif(
    not REAL, reason="MDISTILLER_TEST_DATA does not name a folder that holds cifar-100-binary/"
)


def config(*opts) -> CfgNode:
    """The default configuration with overrides "KEY", value, ..."""
    return load_cfg(None, list(opts))


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
