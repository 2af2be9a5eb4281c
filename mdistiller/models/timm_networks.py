"""Networks of timm, `timm:<name>`, and the places of their weights."""

import difflib
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

from mdistiller.errors import UserError, first_line
from mdistiller.models.base import Output
from mdistiller.models.wrapped import (
    IMAGENET,
    TRANSFORMER_LEVELS,
    Wrapped,
    evenly,
    fail_to_fetch,
    first_convolution,
)

TIMEOUT = 10  # of a request, in seconds


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
        self.begin()
        last, feats = self.inner.forward_intermediates(image, indices=self.levels, output_fmt="NCHW")
        logits = self.inner.forward_head(last)
        seen = self.collect()
        stem = [seen["stem"]] if "stem" in seen else []
        return self.output(logits, [*stem, *feats], seen.get("pooled"))


def build(name: str, num_classes: int, pretrained: bool, image_size: int | None, kwargs: dict) -> TimmNetwork:
    """The network of that name, see `wrappers.build_wrapped`."""
    import timm

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
        kwargs = {"pretrained_cfg_overlay": _weights(name, settings), **kwargs}
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm:{name} cannot be built with {kwargs}: {first_line(error, kind=False)}") from error
    except Exception as error:  # the hub's client raises exceptions of its HTTP library
        if not pretrained:
            raise
        raise fail_to_fetch(f"timm:{name}", error, _cache(settings)) from error
    size = (image_size or settings.input_size[-1]) if fixed else None
    return TimmNetwork(network, size, new_head=pretrained and num_classes != settings.num_classes)


def _weights(name, settings):
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
        raise fail_to_fetch(f"timm:{name}", getattr(error, "reason", error), _cache(settings)) from error
    return {}


def _cache(settings):
    if not settings.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints"
    import huggingface_hub

    folder = "models--" + settings.hf_hub_id.replace("/", "--")
    return Path(huggingface_hub.constants.HF_HUB_CACHE) / folder
