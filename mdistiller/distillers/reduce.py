"""From one loss per sample to a scalar: the only place where sample weights multiply losses."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mdistiller.errors import UserError


def losses_by_name(terms: Any, method: str) -> Mapping[str, Tensor]:
    """What `sample_losses` returned. Raises UserError if it is not tensors by name."""
    losses = dict(terms) if isinstance(terms, Mapping) else {"": terms}
    for name, loss in losses.items():
        if not name or not isinstance(loss, Tensor):
            found = f"{name} {type(loss).__name__}".strip()
            raise UserError(f"{method}: sample_losses: expected a dict of tensors by name; found {found}")
    return losses


def weighted_mean(loss: Tensor, weight: Tensor, name: str, method: str = "") -> Tensor:
    """Batch mean of weight * loss, both (n,) (EA-KD, Eq. 14, as a mean); without samples, 0 with a gradient of 0.

    `name` names the loss in errors, and `method` its method. Raises UserError if the shapes differ.
    """
    if loss.shape != weight.shape:
        raise UserError(
            f"{method + ': ' if method else ''}loss {name!r} has shape {tuple(loss.shape)}, expected "
            f"{tuple(weight.shape)}: reduce over every dimension except the batch"
        )
    return (weight * loss).mean() if len(loss) else (weight * loss).sum()
