"""Wrappers that do not change the state dict of a network, so that checkpoints fit with and without the wrapper."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.hooks import after_saving, before_loading
from mdistiller.models.base import Output

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation, per channel, of images in 0..1


class Transparent(nn.Module):
    """Contains a network as `inner`, and has the state dict of this network."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        after_saving(self, _strip)
        before_loading(self, _insert)


def _strip(module, state_dict, prefix, local_metadata):
    long = f"{prefix}inner."
    for key in [key for key in state_dict if key.startswith(long)]:
        state_dict[prefix + key.removeprefix(long)] = state_dict.pop(key)


def _insert(module, state_dict, prefix, *_):
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}inner.{key.removeprefix(prefix)}"] = state_dict.pop(key)


class AtInputSize(Transparent):
    """A network with its own image size and normalisation, to which the images of the data are converted on the device.

    The input are images (B, 3, H, W) with the normalisation `data` (mean and std); the network gets (B, 3, size, size)
    with the normalisation `own`. The whole image is resized by bicubic interpolation with antialiasing and clipped to
    0..1. timm's evaluation does the same with PIL and 8 bits, but also crops the centre. Images that already have the
    size, or all if `size` is None, are not resized. Other attributes are those of `network`.
    """

    def __init__(self, network: nn.Module, size: int | None, data: Normalisation, own: Normalisation):
        super().__init__(network)
        self.size, self.own = size, own
        for name, values in zip(("mean", "std", "own_mean", "own_std"), (*data, *own), strict=True):
            values = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(f"_{name}", values, persistent=False)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return getattr(super().__getattr__("inner"), name)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(mean, std), each (1, C, 1, 1), of the images that it takes."""
        return self._mean, self._std

    def convert(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) with the data's normalisation -> (B, 3, size, size) with the network's normalisation."""
        mean, std, own_mean, own_std = (
            values.to(image.dtype) for values in (self._mean, self._std, self._own_mean, self._own_std)
        )
        pixels = image * std + mean
        if self.size is not None and image.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - own_mean) / own_std

    def forward(self, image: Tensor) -> Output:
        return self.inner(self.convert(image))

    @property
    def stages(self):
        """The network's stages; the first one also converts the image. AttributeError if the network has none."""
        inner = self.inner.stages

        def stages():
            first, *rest = inner()
            return [lambda image: first(self.convert(image)), *rest]

        return stages
