"""What a run needs to know about its data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DataInfo:
    """Facts about the data of a run."""

    name: str
    num_classes: int
    num_train: int  # images trained on, after VAL_FRACTION and TRAIN_FRACTION
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    targets: Tensor = field(repr=False)  # (num_train,) int64 on the host: training labels by `index`
    family: str  # which networks fit: "cifar", "tiny_imagenet" or "imagenet"
    classes: tuple[str, ...] | None = field(repr=False)
    hasher: Callable[[], str] = field(repr=False)  # computes the fingerprint when it is first asked for

    task: str = "classification"  # what the data are for, see `mdistiller.tasks`
    categories: tuple[int, ...] | None = field(default=None, repr=False)  # the data's own numbers of the classes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the training images and labels in use, in the order of `index`.

        Of images too large for memory, names and sizes in bytes stand for the pixels.
        """
        return self.hasher()
