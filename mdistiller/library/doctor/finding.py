"""The class of findings, and helpers of the checks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Finding(NamedTuple):
    """A fault: its short `name`, and one line with what was found and the usual remedy."""

    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


@dataclass
class Case:
    """What checks look at: the module, a batch, and what the networks made of it.

    `inputs` are what the networks take, `target` (n,) or None; `logits_student` and `logits_teacher` (n, C) are those
    of eval mode, `stored` (n, C) or None the logits that the batch brought for the teacher; `settings` what the user
    passed to `diagnose`.
    """

    kd: Any
    inputs: Any
    target: Tensor | None
    logits_student: Tensor | None = None
    logits_teacher: Tensor | None = None
    stored: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Tensor | None:
        """The inputs where they are images (n, channels, height, width), floating or not; else None."""
        inputs = self.inputs
        if isinstance(inputs, dict):
            inputs = inputs.get("pixel_values")
        return inputs if isinstance(inputs, Tensor) and inputs.dim() == 4 else None

    @property
    def labelled(self) -> bool:
        """Whether there is one valid class for each row of the teacher's logits."""
        target, logits = self.target, self.logits_teacher
        return (
            target is not None
            and logits is not None
            and target.dim() == 1
            and len(target) == len(logits)
            and not target.is_floating_point()
            and bool(((target >= 0) & (target < logits.shape[1])).all())
        )


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Fraction of the rows whose largest logit is that of the target."""
    return float((logits.argmax(dim=1) == target).float().mean())


def reached_parameters(loss: Tensor) -> set[int]:
    """Ids of the parameters that would get a gradient from `loss`; no gradient is computed."""
    seen, waiting, found = set(), [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def sharded(module: nn.Module) -> bool:
    """Whether parameters are split over processes (FSDP); then they are not the tensors of the graph."""
    return any(
        hasattr(parameter, "full_tensor")  # of fully_shard
        or hasattr(parameter, "_fsdp_flattened")  # of FullyShardedDataParallel, which has no public mark
        or not parameter.is_leaf  # in a pass of the latter
        for parameter in module.parameters()
    )


def shared_storage(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of parameters that the two networks share in memory.

    Parameters with the address 0 are left out: empty ones, and those on a device without addresses.
    """
    places = {parameter.data_ptr(): name for name, parameter in one.named_parameters() if parameter.data_ptr()}
    for name, parameter in other.named_parameters():
        if parameter.data_ptr() in places:
            yield places[parameter.data_ptr()], name


def many(names: list[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def norm_layers(network: nn.Module) -> list[nn.Module]:
    """The batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
