"""What networks of timm and torchvision have in common behind the common interface.

One forward pass gives logits and features. Level 0 of `feats` is the stem, as in all networks: the output of the first
convolution, if the library's list of stages starts after it. For transformers, `feats` are the outputs of four evenly
spaced blocks, with tokens as maps (B, C, h, w). `preact_feats` are the same maps, because maps before an activation are
not known here.
"""

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from mdistiller.errors import UserError, first_line
from mdistiller.models.base import Features, Output
from mdistiller.models.transparent import Normalisation, Transparent

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # normalisation of torchvision's classifiers
TRANSFORMER_LEVELS = 4  # the number of stages of a ResNet


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
    return UserError(
        f"pretrained weights of {name} cannot be fetched ({first_line(reason, kind=False)}): put them in {place}, or "
        "use your own checkpoint"
    )
