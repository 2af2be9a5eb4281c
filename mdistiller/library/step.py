"""What a batch gives: the losses of a training step, or the outputs of an evaluation."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """The result of a batch in train mode.

    `loss` is the scalar sum of `losses`, {name: scalar}, with the cross-entropy under "ce"; `logits` (n, C) are the
    student's; `weight` (n,), detached, are the factors of the samples' distillation losses (ones without EA). For a
    language model with LM_LOSS_CHUNK, whose logits are never in memory together, `logits` are the hidden states (n, D)
    from which they are computed.
    """

    loss: Tensor | None
    losses: dict[str, Tensor]
    logits: Tensor
    weight: Tensor | None


class Evaluated(tuple):
    """The result of a batch in eval mode: (loss, logits), or (logits,) without labels, when `loss` is None.

    `logits` are (n, C); of a language model in `distill` (B, L, V), for all tokens. `losses` contains the
    cross-entropy, as in `Step`, and `weight` is None. The tuple has no other entries, because transformers' Trainer
    gathers all that follow the loss from its processes.
    """

    losses: Mapping[str, Tensor] = MappingProxyType({})
    weight = None

    @property
    def loss(self) -> Tensor | None:
        return self[0] if len(self) > 1 else None

    @property
    def logits(self) -> Tensor:
        return self[-1]
