"""The common interface of networks and their registry. Networks do not depend on distillation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import UserError, first_line
from mdistiller.hooks import before_loading
from mdistiller.registry import Registry

MODELS = Registry("model family")
MODELS.update({family: Registry(f"{family} model") for family in ("cifar", "tiny_imagenet", "imagenet")})
STEM_APART = "stem_apart"  # entry of the features of a network whose `feats` begin with the first stage
SMALL_IMAGES = ("cifar", "tiny_imagenet")  # families that share the networks for 32x32 images


def register_model(name: str, family: str | tuple[str, ...] = "cifar") -> Callable:
    """Decorator: make `build_model(name, ...)` call the decorated class or function.

    It is called with `num_classes` and further keywords of `build_model`, and returns a network whose output is
    `(logits, features)`, see `Output`. Raises ValueError if the family already has this name.
    """

    def add(build):
        for one in (family,) if isinstance(family, str) else family:
            MODELS[one].register(name)(build)
        return build

    return add


class Output(NamedTuple):
    """The output of a network, in train and in eval mode; unpacks as `logits, features`.

    `logits` are (B, num_classes). `features` has `feats`, a list of maps (B, C, H, W), that of the stem and then one
    for each stage; `preact_feats`, the same maps before the last activation of each stage (missing for networks without
    one); and `pooled_feat` (B, D), the input of the classifier. ImageNet's MobileNetV1 gives the stem apart, as its
    public code has `feats`; see `with_stem`.
    """

    logits: Tensor
    features: dict[str, Any]


class Features(dict):
    """The features of a network that may lack some of them; reading a missing one raises UserError."""

    def __missing__(self, key):
        raise UserError(
            f"the method reads features[{key!r}], but the network returns {', '.join(self) or 'logits only'}: return "
            "(logits, features) with this feature from its forward, or choose a method that reads logits"
        )


def give_output(network: nn.Module, args: tuple, output: Any) -> Output:
    """Forward hook for the user's networks: converts logits, or (logits, dict of features), to an `Output`.

    Raises UserError for anything else.
    """
    if isinstance(output, Tensor):
        return Output(output, Features())
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        return Output(output[0], Features(output[1]))
    raise UserError(
        f"{type(network).__name__} returns {type(output).__name__}; expected logits (B, C), or a pair of logits and a "
        "dict with feats, preact_feats and pooled_feat"
    )


def as_output(network: nn.Module, output: Any) -> Any:
    """What any network returned as an object with `logits` and `features`; one that has both is returned unchanged."""
    if hasattr(output, "logits"):
        return output if hasattr(output, "features") else Output(output.logits, Features())
    return give_output(network, (), output)


def with_stem(output: Any) -> Any:
    """The output, whose maps begin with the stem: a stem that the network gives apart becomes level 0 of them."""
    features = getattr(output, "features", None)
    if not isinstance(features, Mapping) or STEM_APART not in features:
        return output
    features = dict(features)
    stem = features.pop(STEM_APART)
    features |= {key: [stem, *features[key]] for key in ("feats", "preact_feats")}
    return output._replace(features=features)


def any_parameter(*networks: nn.Module | None) -> Tensor:
    """A parameter of the first network that has any, for the dtype and device of inputs; without one, a CPU tensor."""
    return next(chain.from_iterable(one.parameters() for one in networks if one is not None), torch.empty(0))


@contextmanager
def modes_kept(network: nn.Module | None) -> Iterator[None]:
    """Context at whose end each module of a network is in train or eval mode as it was."""
    modes = [(module, module.training) for module in network.modules()] if network is not None else []
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def try_out(network: nn.Module, num_classes: int, image_size: int) -> None:
    """Raise UserError unless the network, in eval mode, returns logits (1, num_classes) for an image (1, 3, S, S)."""
    try:
        with modes_kept(network):
            logits = network.eval()(torch.zeros(1, 3, image_size, image_size)).logits
    except UserError:
        raise
    except Exception as error:  # of any kind: the user's code, or a network that needs larger images
        raise UserError(f"fails on an image of {image_size}x{image_size} pixels: {first_line(error)}") from error
    if tuple(logits.shape) != (1, num_classes):
        raise UserError(f"returns logits {tuple(logits.shape)} for an image; expected (1, {num_classes})")


class Network(nn.Module):
    """Base class of networks that map images (B, 3, H, W), of any size, to an `Output`.

    `stage_channels` are the channels of `feats`. `stage_kind` says where `stages` divides the network: after a ReLU,
    before a ReLU, or before the batch norm of the next stage. `stages`, `head` and `get_bn_before_relu` raise
    NotImplementedError for a network without such parts.
    """

    stage_kind: str  # "after_relu", "before_relu" or "before_bn"
    stage_channels: list[int]

    def __init__(self):
        super().__init__()
        before_loading(self, _add_missing_counters)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions that, one after the other, map the image to the input of `head`.

        The last one includes all layers between the last stage and the head.
        """
        raise NotImplementedError(f"{type(self).__name__} is not divided into stages")

    def head(self, x: Tensor) -> Tensor:
        """Output of the last of `stages` -> logits (B, num_classes): activation, global average, classifier."""
        raise NotImplementedError(f"{type(self).__name__} has no separate head")

    def get_stage_channels(self) -> list[int]:
        """Channels of `feats` (for some networks, mdistiller returns other numbers)."""
        return list(self.stage_channels)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm directly before the last activation of each stage, without the stem."""
        raise NotImplementedError(f"{type(self).__name__} has no batch norm right before the ReLU of each stage")


def global_pool(x: Tensor) -> Tensor:
    """The mean over the map, for any size: (B, C, H, W) -> (B, C)."""
    return x.mean((2, 3))


def init_convs(network: nn.Module) -> None:
    """Initialise convolutions: normal with std sqrt(2 / (k*k*out)), bias 0. Batch norms already start at 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Stage(nn.Sequential):
    """Blocks whose last ReLU is applied here: (B, C, H, W) -> (output, output before the last ReLU)."""

    def preactivation(self, x: Tensor) -> Tensor:
        *inner, last = self
        for block in inner:
            x = F.relu(block(x), inplace=True)
        return last(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.preactivation(x)
        return F.relu(preact), preact  # not in place, because `preact` is returned too


def run_stages(x: Tensor, stages: list[nn.Module], stem: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output of the last stage, `feats` and `preact_feats`; the first entry of both is the stem."""
    feats, preact_feats = [stem], [stem]
    for stage in stages:
        x, preact = stage(x)
        feats.append(x)
        preact_feats.append(preact)
    return x, feats, preact_feats


def _add_missing_counters(network, state_dict, prefix, *_):
    """Keep the current `num_batches_tracked` if a checkpoint of PyTorch before 0.4.1 does not have them."""
    for name, buffer in network.named_buffers(prefix.removesuffix(".")):
        if name.endswith("num_batches_tracked"):
            state_dict.setdefault(name, buffer)
