"""Accuracy, loss and output entropy of a network on a split."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.distillers.ea import entropy
from mdistiller.engine.distributed import sum_over_ranks

TOP_K = 5


@torch.inference_mode()
def evaluate(logits_of: Callable[[Tensor], Tensor], batches: Iterable[dict]) -> dict[str, float]:
    """{"top1", "top5" (percent), "loss" (cross-entropy, nats), "entropy" (mean, nats, temperature 1), "count"}.

    `logits_of` maps images (B, 3, H, W) to logits (B, C). Sums stay on the device until the end; under several
    processes every rank passes its own part. Raises ValueError for no images at all.
    """
    sums = None
    for batch in batches:
        logits = logits_of(batch["image"]).float()
        target = batch["target"]
        ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == target[:, None]
        row = torch.stack(
            [
                ranked[:, 0].sum().double(),
                ranked.sum().double(),
                F.cross_entropy(logits, target, reduction="sum").double(),
                entropy(logits).sum().double(),
                torch.full((), float(len(target)), dtype=torch.double, device=logits.device),
            ]
        )
        sums = row if sums is None else sums + row
    if sums is None:
        raise ValueError("no images to evaluate on")
    top1, top5, loss, mean_entropy, count = sum_over_ranks(sums).tolist()
    return {
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "loss": loss / count,
        "entropy": mean_entropy / count,
        "count": int(count),
    }
