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
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    targets: Tensor = field(repr=False)  # (num_train,) int64 on the CPU: training labels by `index`
    family: str  # family of suitable networks: "cifar", "tiny_imagenet" or "imagenet"
    classes: tuple[str, ...] | None = field(repr=False)
    hasher: Callable[[], str] = field(repr=False)  # computes the fingerprint when it is first needed

    task: str = "classification"  # the task of the data, see `mdistiller.tasks`
    categories: tuple[int, ...] | None = field(default=None, repr=False)  # ids of the classes in the data

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the training images and labels in use, in the order of `index`.

        For images that are too large for memory, it uses names and file sizes instead of pixels.
        """
        return self.hasher()
