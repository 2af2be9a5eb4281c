"""What a training epoch measures, kept on the device until somebody reads it."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mdistiller.distributed import sum_over_ranks

WEIGHT_NAMES = ("weight_mean", "weight_std", "entropy_teacher", "entropy_student")
SUM = "sum/"  # how the columns begin that hold sums over the samples of a step by part, see `Task.parts`


class Meters:
    """One row of numbers a step: each loss, what the task says of its samples, and how these were weighted.

    A row is written without reading anything back, so that the step never waits for the device.
    """

    def __init__(self, num_batches: int, device: torch.device):
        self.num_batches, self.device = num_batches, device
        self.names: list[str] | None = None
        self.rows: Tensor | None = None
        self.progress: dict[str, float] = {}  # name of what the task says -> 100 where it is a part in percent, else 1
        self.counts = torch.zeros(num_batches, dtype=torch.float64)  # samples of each step, known on the host

    def add(self, step: int, losses: dict[str, Tensor], samples: int, progress: dict, monitor: dict,
            parts: Mapping[str, str] = MappingProxyType({})) -> None:
        """Record step number `step` (from 0) of `samples` samples: losses are scalars; `progress` and `monitor` hold
        what the task and the sample weights were, (samples,) by name, see `Distiller`; `parts`, see `Task`."""
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
            self.rows = torch.zeros(self.num_batches, len(row), device=self.device)
        zero = self.rows.new_zeros(())
        self.rows[step] = torch.stack([row.get(name, zero).float() for name in self.names])
        self.counts[step] = samples

    def samples(self) -> int:
        """How many samples the steps so far had, over all ranks."""
        return int(sum_over_ranks(self.counts.sum().to(self.device, torch.float32)).item())

    def first_nonfinite(self, step: int) -> tuple[int, list[str]] | None:
        """(step from 0, names of the terms) where a rank's loss was first not finite, up to `step`; None (waits)."""
        if self.rows is None:  # every step so far was left out
            return None
        bad = sum_over_ranks((~torch.isfinite(self.rows[: step + 1])).float()).cpu() > 0
        if not bad.any():
            return None
        first = int(bad.any(dim=1).nonzero()[0, 0])
        names = [name for name, is_bad in zip(self.names, bad[first], strict=True) if is_bad]
        return first, [name for name in names if self._is_loss(name)] or names

    def _is_loss(self, name):
        return name not in self.progress and name not in WEIGHT_NAMES and not name.startswith(SUM)

    def zero_losses(self) -> list[str]:
        """Names of the losses that were 0 in every step of the epoch on this rank (waits)."""
        zero = (self.rows == 0).all(dim=0).tolist()
        return [name for name, is_zero in zip(self.names, zero, strict=True) if is_zero and self._is_loss(name)]

    def losses(self, step: int) -> dict[str, float]:
        """The losses of one step by name (waits)."""
        values = dict(zip(self.names, self.rows[step].tolist(), strict=True))
        return {name: value for name, value in values.items() if self._is_loss(name)}

    def epoch_values(self) -> dict[str, float]:
        """Means over the samples of all ranks: `train_<name>` of what the task says, `train_loss`, `train_<term>`,
        weights; for each part of the samples `weight_<part>`, the mean weight, and `loss_share_<part>`, the part of the
        distillation loss that comes from it, in percent."""
        counts = self.counts.to(self.device, torch.float32)
        sums = (self.rows * counts[:, None]).sum(dim=0)
        for number, name in enumerate(self.names):
            if name in self.progress or name.startswith(SUM):  # is a sum already
                sums[number] = self.rows[:, number].sum()
        sums = sum_over_ranks(torch.cat([sums, counts.sum()[None]])).cpu()
        means = dict(zip(self.names, (sums[:-1] / sums[-1]).tolist(), strict=True))
        by_part = {name: means.pop(name) for name in self.names if name.startswith(SUM)}
        values = {f"train_{name}": factor * means.pop(name) for name, factor in self.progress.items()}
        weights = {name: means.pop(name) for name in WEIGHT_NAMES if name in means}
        values["train_loss"] = sum(means.values())
        return values | {f"train_{name}": value for name, value in means.items()} | weights | _means_by_part(by_part)

    def state_dict(self) -> dict:
        rows = None if self.rows is None else self.rows.cpu()
        return {"names": self.names, "rows": rows, "counts": self.counts, "progress": self.progress}

    def load_state_dict(self, state: dict) -> None:
        self.names, self.counts = state["names"], state["counts"]
        self.progress = state.get("progress", {})
        if "progress" not in state and self.names:  # as it was saved when images were all there was
            self.names = ["top1" if name == "hits" else name for name in self.names]
            self.progress = {"top1": 100.0}
        self.rows = None if state["rows"] is None else state["rows"].to(self.device)


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
