"""From one loss per sample to a scalar: the only place where sample weights multiply losses."""

from torch import Tensor


def weighted_mean(loss: Tensor, weight: Tensor, name: str) -> Tensor:
    """Batch mean of weight * loss, both (n,) (EA-KD, Eq. 14, as a mean); without samples, 0 with a gradient of 0.

    `name` names the loss in errors. Raises ValueError if the shapes differ.
    """
    if loss.shape != weight.shape:
        raise ValueError(
            f"loss {name!r} has shape {tuple(loss.shape)}, expected {tuple(weight.shape)}: "
            "reduce over every dimension except the batch"
        )
    return (weight * loss).mean() if len(loss) else (weight * loss).sum()
