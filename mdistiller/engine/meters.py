"""Measurements of a training epoch, kept on the device until they are read."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mdistiller.distributed import sum_over_ranks

WEIGHT_NAMES = ("weight_mean", "weight_std", "entropy_teacher", "entropy_student")
SUM = "sum/"  # prefix of columns with sums over the samples of one part of a step, see `Task.parts`


class Meters:
    """One row of numbers per step: losses, the task's progress metrics, and statistics of the sample weights.

    Adding a row reads nothing back from the device, so that a training step does not wait for it.
    """

    def __init__(self, num_batches: int, device: torch.device):
        self.num_batches, self.device = num_batches, device
        self.names: list[str] | None = None
        self.rows: Tensor | None = None
        self.checked = 0  # the steps before this one are known to be finite
        self.progress: dict[str, float] = {}  # progress metric -> factor: 100 for a fraction shown in percent, else 1
        self.counts = torch.zeros(num_batches, dtype=torch.float64)  # samples of each step, in CPU memory

    def row(self, losses: dict[str, Tensor], samples: int, progress: dict, monitor: dict,
            parts: Mapping[str, str] = MappingProxyType({})) -> Tensor:
        """The numbers (columns,) of a step with `samples` samples, on the device.

        `losses` are scalars. `progress` and `monitor` map names to tensors (samples,): the task's progress metrics, and
        the sample weights and entropies (see `Distiller`). For `parts` see `Task`.
        """
        row = {name: loss.detach() for name, loss in losses.items()}
        row |= {name: values.sum() for name, values in progress.items()}
        if "loss" in monitor or "weight" in monitor:
            row |= _sums_by_part(progress, monitor, parts)
        if "weight" in monitor and samples:
            weight = monitor["weight"]
            row |= {
                "weight_mean": weight.mean(),
                "weight_std": weight.std(correction=0),
                "entropy_teacher": monitor["entropy_teacher"].mean(),
                "entropy_student": monitor["entropy_student"].mean(),
            }
        if self.rows is None:
            self.names = list(row)
            self.progress = {name: 100.0 if values.dtype == torch.bool else 1.0 for name, values in progress.items()}
        zero = torch.zeros((), device=self.device)
        return torch.stack([row.get(name, zero).float() for name in self.names])

    def write(self, step: int, row: Tensor, samples: int) -> None:
        """Store the row of step number `step` (from 0)."""
        if self.rows is None:
            self.rows = torch.zeros(self.num_batches, len(row), device=self.device)
        self.rows[step] = row
        self.counts[step] = samples

    def samples(self) -> int:
        """Number of samples in the steps so far, summed over all ranks."""
        return int(sum_over_ranks(self.counts.sum().to(self.device, torch.float32)).item())

    def first_nonfinite(self, step: int) -> tuple[int, list[str]] | None:
        """The first step (from 0), up to `step`, with a non-finite loss on any rank, and the names of these losses.

        None when all are finite; they are not read again, as `step` grows from call to call. Waits for the device.
        """
        if self.rows is None:  # every step so far was skipped
            return None
        bad = sum_over_ranks((~torch.isfinite(self.rows[self.checked : step + 1])).float()).cpu() > 0
        if not bad.any():
            self.checked = step  # this one once more: what ranks add is never empty
            return None
        first = int(bad.any(dim=1).nonzero()[0, 0])
        names = [name for name, is_bad in zip(self.names, bad[first], strict=True) if is_bad]
        return self.checked + first, [name for name in names if self._is_loss(name)] or names

    def _is_loss(self, name):
        return name not in self.progress and name not in WEIGHT_NAMES and not name.startswith(SUM)

    def zero_losses(self) -> list[str]:
        """Names of the losses that were 0 in every step of the epoch on this rank. Waits for the device."""
        zero = (self.rows == 0).all(dim=0).tolist()
        return [name for name, is_zero in zip(self.names, zero, strict=True) if is_zero and self._is_loss(name)]

    def losses(self, step: int) -> dict[str, float]:
        """The losses of one step by name. Waits for the device."""
        values = dict(zip(self.names, self.rows[step].tolist(), strict=True))
        return {name: value for name, value in values.items() if self._is_loss(name)}

    def epoch_values(self) -> dict[str, float]:
        """Means over all samples of all ranks.

        Keys: `train_<metric>` for the task's progress metrics, `train_loss`, `train_<loss>`, and the statistics of the
        weights (entropies in nats). For each part of the samples also `weight_<part>`, its mean weight, and
        `loss_share_<part>`, its share of the distillation loss in percent.
        """
        counts = self.counts.to(self.device, torch.float32)
        sums = (self.rows * counts[:, None]).sum(dim=0)
        for number, name in enumerate(self.names):
            if name in self.progress or name.startswith(SUM):  # these columns already hold sums
                sums[number] = self.rows[:, number].sum()
        sums = sum_over_ranks(torch.cat([sums, counts.sum()[None]])).cpu()
        means = dict(zip(self.names, (sums[:-1] / sums[-1]).tolist(), strict=True))
        by_part = {name: means.pop(name) for name in self.names if name.startswith(SUM)}
        values = {f"train_{name}": factor * means.pop(name) for name, factor in self.progress.items()}
        weights = {name: means.pop(name) for name in WEIGHT_NAMES if name in means}
        values["train_loss"] = sum(means.values())
        return values | {f"train_{name}": value for name, value in means.items()} | weights | _means_by_part(by_part)

    def clear(self) -> None:
        """Forget the measurements of all steps, but not their names."""
        self.counts = torch.zeros_like(self.counts)
        self.rows = None if self.rows is None else torch.zeros_like(self.rows)

    def state_dict(self) -> dict:
        rows = None if self.rows is None else self.rows.cpu()
        return {"names": self.names, "rows": rows, "counts": self.counts, "progress": self.progress}

    def load_state_dict(self, state: dict) -> None:
        """Take over saved measurements.

        Raises ValueError for entries that are no numbers, and for another number of steps in an epoch.
        """
        if len(state["counts"]) != self.num_batches:
            raise ValueError(f"measurements of {len(state['counts'])} steps, expected {self.num_batches}")
        names, progress = state["names"], state.get("progress", {})
        shapes = {"counts": (self.num_batches,), "rows": None if names is None else (self.num_batches, len(names))}
        if not all(_floats(state[key], shape) for key, shape in shapes.items()) or not all(
                isinstance(factor, float) for factor in progress.values()):
            raise ValueError("its measurements are no numbers")
        self.names, self.counts = names, state["counts"]
        self.progress = state.get("progress", {})
        if "progress" not in state and self.names:  # saved by a version that only knew image classification
            self.names = ["top1" if name == "hits" else name for name in self.names]
            self.progress = {"top1": 100.0}
        self.rows = None if state["rows"] is None else state["rows"].to(self.device)


def _floats(value, shape):
    """Whether a value is a tensor of floating-point numbers of this shape, or None if the shape is None."""
    return value is None if shape is None else (
        isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape)


def _sums_by_part(progress, monitor, parts):
    """{column: sum} of counts, weights and weighted losses (samples,) over the samples of each part."""
    each = {name: monitor[name] for name in ("weight", "loss") if name in monitor}
    each.setdefault("weight", torch.ones_like(next(iter(each.values()))))
    row = {}
    for name, rest in parts.items():
        for part, mask in ((name, progress[name]), (rest, ~progress[name])):
            row[f"{SUM}count/{part}"] = mask.sum()
            row |= {f"{SUM}{what}/{part}": (values * mask).sum() for what, values in each.items()}
    return row


def _means_by_part(sums):
    parts = [name.rpartition("/")[2] for name in sums if name.startswith(f"{SUM}count/")]
    total = sum(sums.get(f"{SUM}loss/{part}", 0) for part in parts)  # none of a method with one loss an image
    values = {}
    for part in parts:
        if count := sums[f"{SUM}count/{part}"]:
            values[f"weight_{part}"] = sums[f"{SUM}weight/{part}"] / count
        if total:
            values[f"loss_share_{part}"] = 100 * sums[f"{SUM}loss/{part}"] / total
    return values
