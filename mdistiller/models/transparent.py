"""Wrappers around a network that do not show in its state dict: checkpoints of the bare network load, and back."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models.base import Output

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation, per channel, of images in 0..1


class Transparent(nn.Module):
    """Holds a network as `inner`; its state dict is that of the inner network."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.register_state_dict_post_hook(_strip)
        self.register_load_state_dict_pre_hook(_insert)


def _strip(module, state_dict, prefix, local_metadata):
    long = f"{prefix}inner."
    for key in [key for key in state_dict if key.startswith(long)]:
        state_dict[prefix + key.removeprefix(long)] = state_dict.pop(key)


def _insert(module, state_dict, prefix, *_):
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}inner.{key.removeprefix(prefix)}"] = state_dict.pop(key)


class AtInputSize(Transparent):
    """A network that sees images of its own size and normalisation, made on the device from the data's.

    Takes images (B, 3, H, W) normalised as the data is (`data`: its mean and std) and runs the network on
    (B, 3, size, size) normalised as the network knows it (`own`). The whole image is resized, bicubic with
    antialiasing and cut to 0..1, as timm's evaluation does by way of PIL and 8 bits; its centre crop is left out.
    Images that have the size already (or `size` None) keep their pixels. Whatever else a method asks of a network is
    looked up in `network`.
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

    def convert(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in the data's normalisation to (B, 3, size, size) in the network's."""
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
        """As the network's own, which raises AttributeError when it has none; the first one converts the image."""
        inner = self.inner.stages

        def stages():
            first, *rest = inner()
            return [lambda image: first(self.convert(image)), *rest]

        return stages
