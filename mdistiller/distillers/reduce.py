"""From one loss per sample to a scalar: the one place where weights multiply losses."""

from torch import Tensor


def weighted_mean(loss: Tensor, weight: Tensor, name: str) -> Tensor:
    """Batch mean of weight * loss, both (n,) (EA-KD, Eq. 14 as a mean); 0, with a gradient of 0, for no sample.

    Raises ValueError for another shape of loss.
    """
    if loss.shape != weight.shape:
        raise ValueError(
            f"loss {name!r} has shape {tuple(loss.shape)}, expected {tuple(weight.shape)}: "
            "reduce over every dimension except the batch"
        )
    return (weight * loss).mean() if len(loss) else (weight * loss).sum()
