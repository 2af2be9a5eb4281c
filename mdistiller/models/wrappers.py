"""Networks of libraries and of the user with the common interface: `timm:<name>`, `torchvision:<name>`,
`<file>.py:<class>`.

One forward pass gives logits and features. Level 0 of `feats` is the stem, as in all networks: the output of the first
convolution, if the library's list of stages starts after it. For transformers, `feats` are the outputs of four evenly
spaced blocks, with tokens as maps (B, C, h, w). `preact_feats` are the same maps, because maps before an activation are
not known here.
"""

import difflib
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
import torchvision
from torch import Tensor, nn

from mdistiller.errors import UserError
from mdistiller.models.base import Features, Output, reason_of
from mdistiller.models.transparent import Normalisation, Transparent
from mdistiller.plugins import import_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # normalisation of torchvision's classifiers
TRANSFORMER_LEVELS = 4  # the number of stages of a ResNet
TIMEOUT = 10  # of a request, in seconds


def build_wrapped(
    name: str, num_classes: int, pretrained: bool = False, image_size: int | None = None, **kwargs
) -> nn.Module:
    """The network "timm:<name>", "torchvision:<name>" or "<file>.py:<class>", with a head of `num_classes`.

    `image_size` is used for networks with a fixed image size (most transformers); None keeps their default. Further
    keywords are passed to the library. Raises UserError for unknown names, wrong keywords, or weights that cannot be
    downloaded.
    """
    library, _, rest = name.partition(":")
    if library in LIBRARIES:
        return LIBRARIES[library](rest, num_classes, pretrained, image_size, kwargs)
    if pretrained:
        raise UserError(f"{name}: no pretrained weights for a network from a file; expected its checkpoint")
    try:
        network = own_class(library, rest)(num_classes=num_classes, **kwargs)
    except UserError:
        raise
    except Exception as error:  # of any kind, from the user's code
        raise UserError(f"{name}: cannot be built: {reason_of(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}: expected a class of networks (torch.nn.Module), found {type(network).__name__}")
    return network


class Wrapped(Transparent):
    """A network of a library, with metadata.

    `input_size` is its image size in pixels, or None if it accepts any; `normalisation` is that of the library's
    weights; `new_head` says whether the classifier is new, because the pretrained weights have other classes.
    """

    def __init__(self, inner: nn.Module, input_size: int | None, normalisation: Normalisation, new_head: bool):
        super().__init__(inner)
        self.input_size, self.normalisation, self.new_head = input_size, normalisation, new_head
        self._seen: dict[str, Tensor] = {}  # values that hooks keep in the current forward pass
        self.watching = False  # hooks keep nothing of passes through the inner network alone

    def watch(self, key: str, module: nn.Module, what: str = "output") -> None:
        """Keep the module's output, or with `what` "input" its input, of each forward pass under `key`."""
        module.register_forward_hook(partial(self._keep, key, what))

    def _keep(self, key, what, module, args, output):
        if self.watching:
            self._seen[key] = args[0] if what == "input" else output

    def collect(self) -> dict[str, Tensor]:
        """The values kept since the last call, which are released here."""
        seen, self._seen, self.watching = self._seen, {}, False
        return seen

    def output(self, logits: Tensor, feats: list[Tensor], pooled: Tensor | None) -> Output:
        """The `Output`, with `pooled_feat` (B, D): `pooled`, the classifier's input, or the mean of the last map."""
        if pooled is None or pooled[0].numel() != pooled.shape[1]:
            pooled = feats[-1].mean((2, 3))
        features = {"feats": feats, "preact_feats": list(feats), "pooled_feat": pooled.flatten(1)}
        return Output(logits, Features(features))


def first_convolution(network: nn.Module, name=None) -> nn.Module | None:
    """The module `name`, else the first convolution in order of registration, else None."""
    modules = dict(network.named_modules())
    if isinstance(name, str) and name in modules:
        return modules[name]
    return next((module for module in modules.values() if isinstance(module, nn.Conv2d)), None)


def evenly(count: int) -> list[int]:
    """Indices of up to four of `count` blocks, evenly spaced and including the last: [2, 5, 8, 11] for 12."""
    levels = min(count, TRANSFORMER_LEVELS)
    return [(count * (level + 1)) // levels - 1 for level in range(levels)]


def fail_to_fetch(name: str, reason, place: str | Path) -> UserError:
    reason = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return UserError(
        f"pretrained weights of {name} cannot be fetched ({reason}): put them in {place}, or use your own "
        "checkpoint"
    )


# --- timm -----------------------------------------------------------------------------------------------------------


class TimmNetwork(Wrapped):
    """A network of timm. The stages are those of `forward_intermediates`, which also gives the logits."""

    def __init__(self, inner: nn.Module, input_size: int | None, new_head: bool):
        settings = getattr(inner, "pretrained_cfg", None) or {"mean": IMAGENET[0], "std": IMAGENET[1]}
        super().__init__(inner, input_size, (settings["mean"], settings["std"]), new_head)
        reductions = [stage["reduction"] for stage in inner.feature_info]
        one_size = len(set(reductions)) == 1 and len(reductions) > TRANSFORMER_LEVELS
        self.levels = evenly(len(reductions)) if one_size else None  # None: all levels
        stem = first_convolution(inner, settings.get("first_conv"))
        if stem is not None and reductions[0] > 2:  # the list starts after the stem
            self.watch("stem", stem)
        classifier = inner.get_classifier()
        self.watch("pooled", classifier[0] if isinstance(classifier, tuple) else classifier, "input")

    def forward(self, image: Tensor) -> Output:
        self.watching = True
        last, feats = self.inner.forward_intermediates(image, indices=self.levels, output_fmt="NCHW")
        logits = self.inner.forward_head(last)
        seen = self.collect()
        stem = [seen["stem"]] if "stem" in seen else []
        return self.output(logits, [*stem, *feats], seen.get("pooled"))


def build_timm(name: str, num_classes: int, pretrained: bool, image_size: int | None, kwargs: dict) -> TimmNetwork:
    try:
        import timm  # imported here because other networks do not need it
    except ImportError:
        raise UserError(f"timm:{name} needs timm: pip install timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"timm has no model {name!r}; nearest: {', '.join(near) or 'see timm.list_models()'}")
    try:
        settings = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.list_pretrained(name.split(".")[0])
        raise UserError(f"timm has no weights {name!r}; available: {', '.join(tags) or 'none'}") from None
    fixed = bool(settings.fixed_input_size)
    if fixed and image_size is not None:
        kwargs = {"img_size": image_size, **kwargs}
    if pretrained:
        kwargs = {"pretrained_cfg_overlay": _timm_weights(name, settings), **kwargs}
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm:{name} cannot be built with {kwargs}: {_first_line(error)}") from error
    except Exception as error:  # the hub's client raises exceptions of its HTTP library
        if not pretrained:
            raise
        raise fail_to_fetch(f"timm:{name}", error, _timm_cache(settings)) from error
    size = (image_size or settings.input_size[-1]) if fixed else None
    return TimmNetwork(network, size, new_head=pretrained and num_classes != settings.num_classes)


def _timm_weights(name, settings):
    """Arguments for timm with the location of the weights: in the cache, without a request, or on a server.

    Raises UserError if they are in neither place; timm itself would retry for a minute and log every attempt.
    """
    if not settings.has_weights:
        raise UserError(f"timm has no pretrained weights for {name!r}: use your own checkpoint")
    if not settings.hf_hub_id:
        return {}
    import huggingface_hub

    files = [settings.hf_hub_filename] if settings.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(settings.hf_hub_id, file)
        if isinstance(cached, str):
            return {"file": cached}
    try:
        urlopen(Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        pass  # the server answers
    except OSError as error:
        raise fail_to_fetch(f"timm:{name}", getattr(error, "reason", error), _timm_cache(settings)) from error
    return {}


def _timm_cache(settings):
    if not settings.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints"
    import huggingface_hub

    folder = "models--" + settings.hf_hub_id.replace("/", "--")
    return Path(huggingface_hub.constants.HF_HUB_CACHE) / folder


# --- torchvision ----------------------------------------------------------------------------------------------------


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
        self.watching = True
        output = self.inner(image)
        logits = getattr(output, "logits", output)  # beside those of auxiliary heads, in train mode
        seen = self.collect()
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


def build_torchvision(
    name: str, num_classes: int, pretrained: bool, image_size: int | None, kwargs: dict
) -> TorchvisionNetwork:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise UserError(f"torchvision has no model {name!r}; nearest: {', '.join(near) or ', '.join(names)}")
    builder = torchvision.models.get_model_builder(name)
    fixed, kwargs = _torchvision_keywords(name, image_size, kwargs)
    native = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    size = image_size if fixed and image_size is not None else native
    try:
        if pretrained:
            network, new_head = _torchvision_pretrained(name, builder, num_classes, kwargs)
        else:
            network, new_head = builder(num_classes=num_classes, **kwargs), False
        levels = levels_of(network, size)
    except URLError as error:
        raise fail_to_fetch(f"torchvision:{name}", error.reason, Path(torch.hub.get_dir()) / "checkpoints") from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"torchvision:{name} cannot be built with {kwargs}: {_first_line(error)}") from error
    return TorchvisionNetwork(network, size if fixed else None, new_head, levels)


def _torchvision_keywords(name, image_size, kwargs):
    """Whether the network has a fixed image size, and the builder's keywords, where those of the caller win."""
    fixed, ours = name.startswith(("vit_", "maxvit")), {}
    if fixed and image_size is not None:
        ours = {"image_size": image_size} if name.startswith("vit_") else {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        ours = {"aux_logits": False, "init_weights": True}  # no auxiliary losses
    return fixed, ours | kwargs


def _torchvision_pretrained(name, builder, num_classes, kwargs):
    """The network with torchvision's first weights (or later ones, if it has no others), and with a new head if these
    have other classes."""
    choices = torchvision.models.get_model_weights(name)
    weights = choices["IMAGENET1K_V1"] if "IMAGENET1K_V1" in choices.__members__ else choices.DEFAULT
    kwargs = {key: value for key, value in kwargs.items() if key != "init_weights"}
    if name == "googlenet":
        kwargs.pop("aux_logits", None)  # with weights, it drops its auxiliary heads by default
    network = builder(weights=weights, progress=False, **kwargs)
    if num_classes == len(weights.meta["categories"]):
        return network, False
    head = last_classifier(network)
    (head_name,) = [path for path, module in network.named_modules() if module is head]
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, 1)
    network.set_submodule(head_name, new)
    return network, True


# --- a class of the user --------------------------------------------------------------------------------------------


def own_class(file: str, name: str) -> Callable[..., nn.Module]:
    """The class or function `name` of a Python file, relative to the working folder. Raises UserError if it is missing.
    """
    path = Path(file)
    if path.suffix != ".py":
        known = ", ".join(f"{library}:<name>" for library in LIBRARIES)
        raise UserError(f"unknown network {file}:{name}; expected {known} or <file>.py:<class>")
    module = import_file(path)
    if not hasattr(module, name):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise UserError(f"{path} has no {name}; it has {', '.join(public)}")
    return getattr(module, name)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


LIBRARIES = {"timm": build_timm, "torchvision": build_torchvision}
