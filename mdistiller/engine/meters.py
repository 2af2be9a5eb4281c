"""What a training epoch measures, kept on the device until somebody reads it."""

import torch
from torch import Tensor

from mdistiller.distributed import sum_over_ranks

WEIGHT_NAMES = ("weight_mean", "weight_std", "entropy_teacher", "entropy_student")


class Meters:
    """One row of numbers a step: each loss, the number of hits, and how the samples were weighted.

    A row is written without reading anything back, so that the step never waits for the device.
    """

    def __init__(self, num_batches: int, device: torch.device):
        self.num_batches, self.device = num_batches, device
        self.names: list[str] | None = None
        self.rows: Tensor | None = None
        self.counts = torch.zeros(num_batches, dtype=torch.float64)  # samples of each step, known on the host

    def add(self, step: int, losses: dict[str, Tensor], logits: Tensor, target: Tensor, monitor: dict) -> None:
        """Record step number `step` (from 0): losses are scalars, logits (B, C), target (B,)."""
        row = {name: loss.detach() for name, loss in losses.items()}
        row["hits"] = (logits.detach().argmax(dim=1) == target).sum()
        if monitor:
            weight = monitor["weight"]
            row |= {
                "weight_mean": weight.mean(),
                "weight_std": weight.std(correction=0),
                "entropy_teacher": monitor["entropy_teacher"].mean(),
                "entropy_student": monitor["entropy_student"].mean(),
            }
        if self.rows is None:
            self.names = list(row)
            self.rows = torch.zeros(self.num_batches, len(row), device=self.device)
        self.rows[step] = torch.stack([row[name].float() for name in self.names])
        self.counts[step] = len(target)

    def first_nonfinite(self, step: int) -> tuple[int, list[str]] | None:
        """(step from 0, names of the terms) where a rank's loss was first not finite, up to `step`; None (waits)."""
        if self.rows is None:  # every step so far was left out
            return None
        bad = sum_over_ranks((~torch.isfinite(self.rows[: step + 1])).float()).cpu() > 0
        if not bad.any():
            return None
        first = int(bad.any(dim=1).nonzero()[0, 0])
        names = [name for name, is_bad in zip(self.names, bad[first], strict=True) if is_bad]
        return first, [name for name in names if name not in WEIGHT_NAMES] or names

    def zero_losses(self) -> list[str]:
        """Names of the losses that were 0 in every step of the epoch on this rank (waits)."""
        zero = (self.rows == 0).all(dim=0).tolist()
        return [name for name, is_zero in zip(self.names, zero, strict=True)
                if is_zero and name not in ("hits", *WEIGHT_NAMES)]

    def losses(self, step: int) -> dict[str, float]:
        """The losses of one step by name (waits)."""
        values = dict(zip(self.names, self.rows[step].tolist(), strict=True))
        return {name: value for name, value in values.items() if name not in ("hits", *WEIGHT_NAMES)}

    def epoch_values(self) -> dict[str, float]:
        """Means over the samples of all ranks: `train_loss`, `train_<term>`, `train_top1` (percent), weights."""
        counts = self.counts.to(self.device, torch.float32)
        hits = self.names.index("hits")
        sums = (self.rows * counts[:, None]).sum(dim=0)
        sums[hits] = self.rows[:, hits].sum()
        sums = sum_over_ranks(torch.cat([sums, counts.sum()[None]])).cpu()
        means = dict(zip(self.names, (sums[:-1] / sums[-1]).tolist(), strict=True))
        values = {"train_top1": 100 * means.pop("hits")}
        weights = {name: means.pop(name) for name in WEIGHT_NAMES if name in means}
        values["train_loss"] = sum(means.values())
        return values | {f"train_{name}": value for name, value in means.items()} | weights

    def state_dict(self) -> dict:
        return {"names": self.names, "rows": None if self.rows is None else self.rows.cpu(), "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.names, self.counts = state["names"], state["counts"]
        self.rows = None if state["rows"] is None else state["rows"].to(self.device)
