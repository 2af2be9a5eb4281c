"""Any network behind the interface of the methods: logits, and the outputs of modules as feature maps."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.config.words import nearest
from mdistiller.errors import UserError, first_line
from mdistiller.models.base import Features, Network, Output, modes_kept
from mdistiller.models.transparent import AtInputSize, Normalisation, Transparent
from mdistiller.models.wrapped import IMAGENET, Wrapped, evenly, first_convolution, unfit_tap

IMAGENET_SIZE = 224  # default side in pixels of the image with which networks of timm and torchvision are probed
TIMM_NEEDS = ("forward_intermediates", "forward_head", "feature_info", "get_classifier")


def call(network: nn.Module, inputs: Any) -> Any:
    """The network's output for a tensor, or for a mapping of its keywords."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def logits_of(network: nn.Module, output: Any) -> Tensor:
    """Logits (B, C) of what a network returns: a tensor, (logits, more), or an object or mapping with `logits`.

    Raises UserError for anything else.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UserError(
        f"{type(network).__name__} returns {type(output).__name__}; expected logits (B, C), a pair that begins with "
        "them, or an object with `logits`"
    )


def split_again(network: nn.Module | None) -> None:
    """Split the weights of a network of FSDP that a pass has gathered.

    Without a backward pass, those of its outermost module stay whole, as copies, and an optimiser would train these.
    """
    for module in network.modules() if network is not None else ():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()


class Bare(Transparent):
    """A network whose logits are read, and its own features if it returns (logits, a mapping of features)."""

    def forward(self, *args, **keywords) -> Output:
        output = self.inner(*args, **keywords)
        pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)
        return Output(logits_of(self.inner, output), Features(output[1] if pair else {}))


class Tapped(Wrapped):
    """A network with the outputs of its modules `levels` (paths, the stem first) as `feats`.

    `pooled` is the path of the classifier, whose input is `pooled_feat`; without it that is the mean of the last map.
    """

    def __init__(self, inner: nn.Module, levels: Sequence[str], pooled: str | None):
        super().__init__(inner, None, IMAGENET, False)
        self.levels = list(levels)
        for name in dict.fromkeys(self.levels):
            self.watch(name, inner.get_submodule(name))
        if pooled is not None:
            self.watch("pooled", inner.get_submodule(pooled), "input")

    def forward(self, *args, **keywords) -> Output:
        self.begin()
        logits = logits_of(self.inner, self.inner(*args, **keywords))
        seen = self.collect(self.levels)
        last = channels_last(self.inner)
        feats = [as_map(seen[name], name, last) for name in self.levels]
        pooled = seen.get("pooled")
        return self.output(logits, feats, pooled if isinstance(pooled, Tensor) and pooled.dim() in (2, 4) else None)


def channels_last(network: nn.Module) -> bool:
    """Whether the network's maps are (B, H, W, C), as in Swin transformers."""
    return getattr(network, "output_fmt", None) == "NHWC" or type(network).__name__ == "SwinTransformer"


def as_map(output: Any, name: str, last: bool = False) -> Tensor:
    """A module's output as a map (B, C, H, W): tokens (B, N, C) without those before the square, or (B, C).

    `last` says that maps have their channels last. Raises UserError for any other output.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"taps: {name} gives {shape}; expected a map (B, C, H, W), tokens (B, N, C) or (B, C)")
    if output.dim() == 2:
        return output[:, :, None, None]
    if output.dim() == 4:
        square = output.shape[1] == output.shape[2]
        return output.permute(0, 3, 1, 2) if last and square else output
    side = int(output.shape[1] ** 0.5)
    return output[:, output.shape[1] - side * side :].mT.unflatten(2, (side, side))


def adapt(
    network: nn.Module, taps: Sequence[str] | None, features: bool, example: Callable[[nn.Module], Any]
) -> nn.Module:
    """The network behind the interface of `Output`, unless it has that already.

    Its features are the outputs of the modules at `taps`, or those that it returns, or the outputs of modules found by
    probing. Without `taps` and `features` the method reads only logits, and nothing is tapped. `example(network)` is an
    input to probe with. Raises UserError for a path that the network does not have, and if it cannot be probed.
    """
    if taps is not None:
        inner = network.inner if isinstance(network, Wrapped) else network
        _check_paths(inner, taps)
        output, seen = record(inner, example(inner))
        runs = Counter(name for name, _, _ in seen)
        for name in taps:
            if runs[name] != 1:
                raise unfit_tap(inner, name, runs[name])
        return Tapped(inner, _with_stem(inner, taps, _once(seen)), _classifier_path(logits_of(inner, output), seen))
    if isinstance(network, Network | Transparent):
        return network
    if not features:
        return Bare(network)
    if all(hasattr(network, name) for name in TIMM_NEEDS):
        from mdistiller.models.timm_networks import TimmNetwork

        return TimmNetwork(network, None, new_head=False)
    if type(network).__module__.startswith("torchvision.models"):
        from mdistiller.models.torchvision_networks import TorchvisionNetwork, levels_of

        inputs = example(network)
        try:
            levels = levels_of(network, inputs.shape[-1])
        except Exception as error:  # of any kind: networks of another task are built otherwise
            raise _unprobed(network, error) from error
        return TorchvisionNetwork(network, None, False, levels)
    return _probed(network, example)


def _check_paths(network, taps):
    known = dict(network.named_modules())
    for name in taps:
        if name not in known or not name:
            near = nearest(name, filter(None, known))
            hint = ", ".join(near) or ", ".join(key for key, _ in network.named_children())
            raise UserError(f"taps: {type(network).__name__} has no module {name!r}; nearest: {hint}")


def _with_stem(network, taps, seen):
    """The paths `taps` after that of level 0, which methods leave out: the first convolution, if it runs."""
    stem = first_convolution(network)
    names = [name for name, module, _ in seen if module is stem]
    return [*(names or taps[:1]), *taps]


def record(network: nn.Module, inputs: Any) -> tuple[Any, list[tuple[str, nn.Module, Any]]]:
    """What one pass in eval mode returns, and (path, module, output) of each module as they end.

    The pass has two examples, so that outputs with one row for each example can be told from others. Raises UserError
    for a network of TorchScript or on the device meta, and if the pass fails.
    """
    name = type(network).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(f"{name} holds modules of TorchScript, which show no features: give the original ones")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise UserError(f"{name} is on the device meta, and shows no features: load its weights before")
    seen: list = []

    def note(name, module, args, output):
        seen.append((name, module, output))

    handles = [module.register_forward_hook(partial(note, name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad(), modes_kept(network):
            return call(network.eval(), _twice(inputs)), seen
    except UserError:
        raise
    except Exception as error:  # of any kind, raised by a user's network
        raise _unprobed(network, error) from error
    finally:
        for handle in handles:
            handle.remove()


def _unprobed(network, error):
    return UserError(
        f"{type(network).__name__} cannot be probed ({first_line(error)}): pass a batch of your own inputs "
        "(example=x), or the pixels a side of its images (image_size=...)"
    )


def _twice(inputs):
    if isinstance(inputs, Mapping):
        return {name: _twice(value) for name, value in inputs.items()}
    return torch.cat([inputs, inputs])


def _once(seen):
    """The entries of `record` without modules that run more than once: a hook would keep only their last output."""
    runs = Counter(name for name, _, _ in seen)
    return [entry for entry in seen if runs[entry[0]] == 1]


def _classifier_path(logits, seen):
    """The path of the linear layer that computes the logits, or None."""
    linear = [name for name, module, output in seen if isinstance(module, nn.Linear) and output.shape == logits.shape]
    return linear[-1] if linear else None


def _probed(network, example):
    output, seen = record(network, example(network))
    logits = logits_of(network, output)
    own = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping) and "feats" in output[1]
    if own:
        return Bare(network)
    seen = _once(seen)
    maps = _maps_by_size(seen, len(logits))
    levels = maps if len(maps) > 1 else _blocks(network, seen) or maps
    classifier = _classifier_path(logits, seen)
    if not levels and classifier is None:
        return Bare(network)  # the method names the features that are missing
    names = _with_stem(network, levels, seen) if levels else []
    if len(names) > 2 and names[0] == names[1]:
        names = names[1:]  # the stem is the only module of its size
    return Tapped(network, names, classifier)


def _maps_by_size(seen, batch):
    """The last module at each size of maps, from large to small: the longest series of them in the order of the pass.

    Larger maps after smaller ones, as in a decoder or a second branch, do not belong to such a series.
    """
    series: dict[int, list[str]] = {}  # by the size of its last map, the longest so far
    aspect = None  # of the first map
    for name, _, output in seen:
        if not isinstance(output, Tensor) or output.dim() != 4 or min(output.shape[2:]) == 1 or len(output) != batch:
            continue
        size = output.shape[2]
        aspect = aspect or size / output.shape[3]
        if size / output.shape[3] != aspect or _are_weights(output):
            continue
        longest = max((names for other, names in series.items() if other > size), key=len, default=[])
        if len(longest) >= len(series.get(size, [])) - 1:
            series[size] = [*longest, name]
    return max(series.values(), key=len, default=[])


def _are_weights(output):
    """Whether these are weights of attention, whose rows are probabilities, and not a map."""
    return bool((output >= 0).all()) and torch.allclose(output.float().sum(-1), torch.ones(()), atol=1e-3)


def _blocks(network, seen):
    """Four evenly spaced blocks of the longest list of modules whose outputs are tokens (B, N, C)."""
    tokens = {name for name, _, output in seen if _first(output) is not None and _first(output).dim() == 3}
    lists = [
        [f"{name}.{child}" for child, _ in module.named_children()]
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    lists = [[path for path in paths if path in tokens] for paths in lists]
    longest = max(lists, key=len, default=[])
    return [longest[index] for index in evenly(len(longest))] if len(longest) > 1 else []


def _first(output):
    output = output[0] if isinstance(output, tuple | list) and output else output
    return output if isinstance(output, Tensor) else None


class Metadata:
    """Input properties declared by a network's library: `normalisation` (mean, deviation) and `size` (pixels), or None.

    `fixed` is the one size that the network takes, None where it takes any.
    """

    def __init__(self, network: nn.Module):
        self.normalisation: Normalisation | None = None
        self.size: int | None = None
        self.fixed: int | None = None
        inner = network.inner if isinstance(network, Wrapped) else network
        settings = getattr(inner, "pretrained_cfg", None)
        if isinstance(settings, Mapping) and "mean" in settings:
            self.normalisation = tuple(settings["mean"]), tuple(settings["std"])
            self.size = tuple(settings.get("input_size") or (3, IMAGENET_SIZE, IMAGENET_SIZE))[-1]
            patches = getattr(inner, "patch_embed", None)
            size = getattr(patches, "img_size", None)
            if settings.get("fixed_input_size") and size is not None and getattr(patches, "strict_img_size", True):
                self.fixed = self.size = size[-1] if isinstance(size, Sequence) else size
        elif type(inner).__module__.startswith("torchvision.models"):
            self.normalisation, self.size = IMAGENET, IMAGENET_SIZE
            if isinstance(getattr(inner, "image_size", None), int):
                self.fixed = self.size = inner.image_size


def at_own_input(network: nn.Module, own: Metadata, data: Normalisation | None, size: int | None) -> nn.Module:
    """The teacher with images converted to its own normalisation and size, if its library declares others."""
    if data is None or own.normalisation is None:
        return network
    resize = own.fixed if own.fixed != size else None
    same = all(torch.allclose(torch.tensor(a), torch.tensor(b)) for a, b in zip(data, own.normalisation, strict=True))
    return network if same and resize is None else AtInputSize(network, resize, data, own.normalisation)
