"""Metadata of a data set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DataInfo:
    """Metadata of the data of a run."""

    name: str
    num_classes: int
    num_train: int  # number of training images, after VAL_FRACTION and TRAIN_FRACTION
    image_size: int  # in pixels; 0 for texts
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    targets: Tensor = field(repr=False)  # (num_train,) int64 on the CPU: labels of images by `index`; 0 for other tasks
    family: str  # of suitable networks: "cifar", "tiny_imagenet", "imagenet", "detection" or "language"
    classes: tuple[str, ...] | None = field(repr=False)
    hasher: Callable[[], str] = field(repr=False)  # computes the fingerprint when it is first needed

    task: str = "classification"  # the task of the data, see `mdistiller.tasks`
    categories: tuple[int, ...] | None = field(default=None, repr=False)  # detection: ids of the classes in the data

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the training images and labels in use, or of the tokens of texts, in the order of `index`.

        For images that are too large for memory, it uses names and file sizes instead of pixels. For detection it is
        that of all annotations of the training set (`BoxSource.fingerprint`), whatever part of them is in use.
        """
        return self.hasher()
