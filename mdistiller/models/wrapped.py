"""What networks of timm and torchvision have in common behind the common interface.

One forward pass gives logits and features. Level 0 of `feats` is the stem, as in all networks: the output of the first
convolution, if the library's list of stages starts after it. For transformers, `feats` are the outputs of four evenly
spaced blocks, with tokens as maps (B, C, h, w). `preact_feats` are the same maps, because maps before an activation are
not known here.
"""

import re
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller import files
from mdistiller.errors import UserError, first_line
from mdistiller.models.base import Features, Output
from mdistiller.models.transparent import Normalisation, Transparent

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # normalisation of torchvision's classifiers
TRANSFORMER_LEVELS = 4  # the number of stages of a ResNet


class Kept:
    """The values that hooks keep of a forward pass.

    It does not refer to the wrapper, which would otherwise live as long as the network that has the hooks.
    """

    def __init__(self):
        self.watching = False  # nothing is kept of passes through the inner network alone
        self.values: dict[str, Any] = {}
        self.repeated: set[str] = set()  # keys of outputs that came more than once

    def keep(self, key: str, what: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook: keep the module's output, or its first argument if `what` is "input"."""
        if not self.watching:
            return
        if what == "output" and key in self.values:
            self.repeated.add(key)
        self.values[key] = args[0] if what == "input" else output


class Wrapped(Transparent):
    """A network of a library, with metadata.

    `input_size` is its image size in pixels, or None if it accepts any; `normalisation` is that of the library's
    weights; `new_head` says whether the classifier is new, because the pretrained weights have other classes.
    """

    def __init__(self, inner: nn.Module, input_size: int | None, normalisation: Normalisation, new_head: bool):
        super().__init__(inner)
        self.input_size, self.normalisation, self.new_head = input_size, normalisation, new_head
        self._kept = Kept()

    def watch(self, key: str, module: nn.Module, what: str = "output") -> None:
        """Keep the module's output, or with `what` "input" its input, of each forward pass under `key`."""
        handle = module.register_forward_hook(partial(self._kept.keep, key, what))
        weakref.finalize(self, handle.remove).atexit = False  # the network may outlive its wrapper

    def begin(self) -> None:
        """Keep the values of the pass that follows; those of a pass that failed are dropped."""
        self._kept.watching, self._kept.values, self._kept.repeated = True, {}, set()

    def collect(self, needed: Sequence[str] = ()) -> dict[str, Tensor]:
        """The values kept since `begin`, which are released here.

        Raises UserError if a module whose output is `needed` did not run in the pass, or ran more than once.
        """
        kept = self._kept
        seen, repeated = kept.values, kept.repeated
        kept.watching, kept.values = False, {}
        for name in needed:
            if name not in seen or name in repeated:
                raise unfit_tap(self.inner, name, 2 if name in repeated else 0)
        return seen

    def output(self, logits: Tensor, feats: list[Tensor], pooled: Tensor | None) -> Output:
        """The `Output`, with `pooled_feat` (B, D): `pooled`, the classifier's input, or the mean of the last map."""
        if pooled is None or pooled[0].numel() != pooled.shape[1]:
            pooled = feats[-1].mean((2, 3))
        features = {"feats": feats, "preact_feats": list(feats), "pooled_feat": pooled.flatten(1)}
        return Output(logits, Features(features))


def unfit_tap(network: nn.Module, name: str, runs: int) -> UserError:
    """The error for a module that ran 0 times or more than once in a pass, so that no one output is the feature."""
    modules = list(network.modules())
    if runs > 1:
        problem = "runs twice in a pass; name a module that runs once"
    elif any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in modules):
        # PyTorch reuses the code of a similar network, and does not check whether that one had the same hooks.
        problem = "runs as compiled before it was tapped: call torch.compiler.reset() before you compile it"
    else:
        problem = "takes no part in its forward pass"
    return UserError(f"taps: {name} of {type(getattr(network, '_orig_mod', network)).__name__} {problem}")


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


def check_cached(url: str) -> None:
    """Raise UserError if the cache of torch.hub has another file in place of the one at `url`.

    The file's name ends with the first digits of its SHA-256, which torch.hub compares only after a download. Without
    this check, a file that was copied there would be unpickled, with any code in it, and a damaged one would raise
    nearly any exception.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if digits and path.is_file() and not (found := files.sha256(path)).startswith(digits[1]):
        raise UserError(f"{path}: its SHA-256 begins with {found[:len(digits[1])]}, expected {digits[1]} as in its "
                        f"name: it is damaged, or another file; delete it, or copy it again from {url}")


def fail_to_fetch(name: str, reason, place: str | Path) -> UserError:
    """The error for pretrained weights that cannot be fetched, with the `place` where a user may put them."""
    return UserError(
        f"pretrained weights of {name} cannot be fetched ({first_line(reason, kind=False)}): put them in {place}, or "
        "use your own checkpoint"
    )
