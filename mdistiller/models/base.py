"""What every network offers, and where its name is kept. Networks know nothing of distillation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import UserError
from mdistiller.registry import Registry

MODELS = Registry("model family")
MODELS.update({family: Registry(f"{family} model") for family in ("cifar", "tiny_imagenet", "imagenet")})
SMALL_IMAGES = ("cifar", "tiny_imagenet")  # families that share the networks made for 32x32 images


def register_model(name: str, family: str | tuple[str, ...] = "cifar") -> Callable:
    """Decorator: make `build_model(name, ...)` call the decorated class or function.

    It is called with `num_classes` and whatever keywords the caller of `build_model` adds, and returns a network
    whose output is `(logits, features)`, see `Output`. Raises ValueError when the family has this name already.
    """

    def add(build):
        for one in (family,) if isinstance(family, str) else family:
            MODELS[one].register(name)(build)
        return build

    return add


class Output(NamedTuple):
    """What a network returns, in train and in eval mode; unpacks as `logits, features`.

    `logits` (B, num_classes). `features`: `feats`, a list of maps (B, C, H, W), the stem first, then one a stage;
    `preact_feats`, the same before the activation that ends the stage (networks without one lack the key);
    `pooled_feat` (B, D), the input of the classifier.
    """

    logits: Tensor
    features: dict[str, Any]


class Features(dict):
    """The features of a network that may lack some; asking for one that is not there is the user's to fix."""

    def __missing__(self, key):
        raise UserError(
            f"the method reads features[{key!r}], and the network gives {', '.join(self) or 'logits only'}: let its "
            "forward return (logits, features) with it, or choose a method that reads logits"
        )


def give_output(network: nn.Module, args: tuple, output: Any) -> Output:
    """Forward hook for networks of one's own: logits alone, or (logits, a dict of features), become an `Output`."""
    if isinstance(output, Tensor):
        return Output(output, Features())
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        return Output(output[0], Features(output[1]))
    raise UserError(
        f"{type(network).__name__} returns {type(output).__name__}; expected logits (B, C), or a pair of logits and a "
        "dict with feats, preact_feats and pooled_feat"
    )


@torch.no_grad()
def try_out(network: nn.Module, num_classes: int, image_size: int) -> None:
    """Raise UserError unless a network in eval mode makes logits (1, num_classes) of an image (1, 3, S, S)."""
    training = network.training
    try:
        logits = network.eval()(torch.zeros(1, 3, image_size, image_size)).logits
    except UserError:
        raise
    except Exception as error:  # of any kind: a network of the user's own, or one that needs larger images
        raise UserError(f"fails on an image of {image_size}x{image_size} pixels: {reason_of(error)}") from error
    finally:
        network.train(training)
    if tuple(logits.shape) != (1, num_classes):
        raise UserError(f"gives logits {tuple(logits.shape)} of an image; expected (1, {num_classes})")


def reason_of(error: Exception) -> str:
    """Kind and first line of an exception of somebody else's code."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


class Network(nn.Module):
    """Base class: an image (B, 3, H, W), of any size, to an `Output`.

    `stage_channels` holds the channels of `feats`, the stem first. `stage_kind` says where `stages` cut the network:
    after a ReLU, before it, or before the batch norm of the next stage.
    """

    stage_kind: str  # "after_relu", "before_relu" or "before_bn"
    stage_channels: list[int]

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(_add_missing_counters)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions that, chained, take the image to the input of `head`; the last stage includes what follows it."""
        raise NotImplementedError(f"{type(self).__name__} is not cut into stages")

    def head(self, x: Tensor) -> Tensor:
        """Output of the last of `stages` to logits (B, num_classes): activation, global average, classifier."""
        raise NotImplementedError(f"{type(self).__name__} has no separate head")

    def get_stage_channels(self) -> list[int]:
        """Channels of `feats`, the stem first (the code this interface comes from returns others for some networks)."""
        return list(self.stage_channels)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm right before the activation that ends each stage, the stem left out."""
        raise NotImplementedError(f"{type(self).__name__} has no batch norm right before the ReLU of each stage")


def global_pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C), the mean over the map, so that every input size works."""
    return x.mean((2, 3))


def init_convs(network: nn.Module) -> None:
    """Convolutions: normal, std sqrt(2 / (k*k*out)), bias 0. Batch norms start at 1 and 0 by themselves."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Stage(nn.Sequential):
    """Blocks that return their sum before the last ReLU, which is applied here: (B, C, H, W) -> (output, that sum)."""

    def preactivation(self, x: Tensor) -> Tensor:
        *inner, last = self
        for block in inner:
            x = F.relu(block(x), inplace=True)
        return last(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.preactivation(x)
        return F.relu(preact), preact  # a new tensor: the sum is returned too


def run_stages(x: Tensor, stages: list[nn.Module], stem: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output of the last stage, `feats` and `preact_feats`. The stem counts as its own pre-activation."""
    feats, preact_feats = [stem], [stem]
    for stage in stages:
        x, preact = stage(x)
        feats.append(x)
        preact_feats.append(preact)
    return x, feats, preact_feats


def _add_missing_counters(network, state_dict, prefix, *_):
    """Checkpoints from before PyTorch 0.4.1 have no `num_batches_tracked`; ours then keep their values."""
    for name, buffer in network.named_buffers(prefix.removesuffix(".")):
        if name.endswith("num_batches_tracked"):
            state_dict.setdefault(name, buffer)
