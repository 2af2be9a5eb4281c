"""Networks of torchvision, `torchvision:<name>`: the modules that give the levels of features, and the weights."""

import difflib
import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from mdistiller.errors import UserError, first_line
from mdistiller.models.base import Output
from mdistiller.models.wrapped import IMAGENET, Wrapped, check_cached, evenly, fail_to_fetch, first_convolution


class TorchvisionNetwork(Wrapped):
    """A network of torchvision; `levels` are the names of the modules whose outputs are `feats`, see `levels_of`."""

    def __init__(self, inner: nn.Module, input_size: int | None, new_head: bool, levels: list[str]):
        super().__init__(inner, input_size, IMAGENET, new_head)
        self.levels = levels
        for name in levels:
            self.watch(name, inner.get_submodule(name))
        classifier = last_classifier(inner)
        if isinstance(classifier, nn.Linear):
            self.watch("pooled", classifier, "input")

    def forward(self, image: Tensor) -> Output:
        self.begin()
        output = self.inner(image)
        logits = getattr(output, "logits", output)  # beside those of auxiliary heads, in train mode
        seen = self.collect(self.levels)
        feats = [seen[name] for name in self.levels]
        return self.output(logits, as_maps(self.inner, feats), seen.get("pooled"))


def as_maps(network: nn.Module, feats: list[Tensor]) -> list[Tensor]:
    """Outputs of blocks of a torchvision network as maps (B, C, h, w), without class tokens."""
    if isinstance(network, torchvision.models.SwinTransformer):  # all but the first convolution are (B, h, w, C)
        return [feats[0], *(feat.permute(0, 3, 1, 2) for feat in feats[1:])]
    if isinstance(network, torchvision.models.VisionTransformer):
        return [feats[0], *(feat[:, 1:].mT.reshape(feats[0].shape) for feat in feats[1:])]
    return feats


def levels_of(network: nn.Module, size: int) -> list[str]:
    """Names of the modules whose outputs are the levels of `feats`, found by a pass with an image of `size`.

    For convolutional networks these are the last blocks before each halving of the map's size, and before them the
    first convolution, if the first of these blocks divides the size by more than two. For transformers these are the
    first convolution and four blocks.
    """
    stem = first_convolution(network)
    (stem_name,) = [name for name, module in network.named_modules() if module is stem]
    if isinstance(network, torchvision.models.VisionTransformer):
        blocks = [f"encoder.layers.{name}" for name, _ in network.encoder.layers.named_children()]
        return [stem_name, *(blocks[index] for index in evenly(len(blocks)))]
    network = deepcopy(network).to("meta").eval()  # only shapes, nothing is computed
    side = 1 if isinstance(network, torchvision.models.SwinTransformer) else 2  # (B, h, w, C) there
    last: dict[int, str] = {}  # by the number of halvings of the size
    pooled = []

    def note(name, module, args, output):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            pooled.append(name)
        if not pooled and isinstance(output, Tensor) and output.dim() == 4:
            last[round(math.log2(size / output.shape[side]))] = name

    for name, module in blocks_of(network):
        module.register_forward_hook(partial(note, name))
    network(torch.zeros(1, 3, size, size, device="meta"))
    names = [last[halvings] for halvings in sorted(last)]
    return [stem_name, *names] if min(last) > 1 else names


def blocks_of(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the parts of a torchvision network that run one after the other, without the classifier."""
    for name, child in network.named_children():
        if name in ("classifier", "permute"):
            continue
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        yield name, child


def last_classifier(network: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer of the logits: the last linear layer, or the last convolution of a fully convolutional network."""
    modules = list(network.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    return linear[-1] if linear else [module for module in modules if isinstance(module, nn.Conv2d)][-1]


def build(
    name: str, num_classes: int, pretrained: bool, image_size: int | None, kwargs: dict
) -> TorchvisionNetwork:
    """The network of that name, see `wrappers.build_wrapped`."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise UserError(f"torchvision has no model {name!r}; nearest: {', '.join(near) or ', '.join(names)}")
    builder = torchvision.models.get_model_builder(name)
    fixed, kwargs = _keywords(name, image_size, kwargs)
    native = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    size = image_size if fixed and image_size is not None else native
    try:
        if pretrained:
            network, new_head = _pretrained(name, builder, num_classes, kwargs)
        else:
            network, new_head = builder(num_classes=num_classes, **kwargs), False
        levels = levels_of(network, size)
    except UserError:
        raise
    except URLError as error:
        raise fail_to_fetch(f"torchvision:{name}", error.reason, Path(torch.hub.get_dir()) / "checkpoints") from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"torchvision:{name} cannot be built with {kwargs}: {first_line(error, kind=False)}") from error
    return TorchvisionNetwork(network, size if fixed else None, new_head, levels)


def _keywords(name, image_size, kwargs):
    """Whether the network has a fixed image size, and the builder's keywords, where those of the caller win."""
    fixed, ours = name.startswith(("vit_", "maxvit")), {}
    if fixed and image_size is not None:
        ours = {"image_size": image_size} if name.startswith("vit_") else {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        ours = {"aux_logits": False, "init_weights": True}  # no auxiliary losses
    return fixed, ours | kwargs


def _pretrained(name, builder, num_classes, kwargs):
    """The network with torchvision's first weights (or later ones, if it has no others), and with a new head if these
    have other classes."""
    choices = torchvision.models.get_model_weights(name)
    weights = choices["IMAGENET1K_V1"] if "IMAGENET1K_V1" in choices.__members__ else choices.DEFAULT
    kwargs = {key: value for key, value in kwargs.items() if key != "init_weights"}
    if name == "googlenet":
        kwargs.pop("aux_logits", None)  # with weights, it drops its auxiliary heads by default
    check_cached(weights.url)
    network = builder(weights=weights, progress=False, **kwargs)
    if num_classes == len(weights.meta["categories"]):
        return network, False
    head = last_classifier(network)
    (head_name,) = [path for path, module in network.named_modules() if module is head]
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, 1)
    owner, _, name = head_name.rpartition(".")
    setattr(network.get_submodule(owner), name, new)
    return network, True
