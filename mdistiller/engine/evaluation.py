"""Accuracy, loss and output entropy of a network on a split."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.distillers.ea import entropy
from mdistiller.distributed import sum_over_ranks

TOP_K = 5


@torch.inference_mode()
def evaluate(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable[dict], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """{"top1", "top5" (percent), "loss" (cross-entropy, nats), "entropy" (mean, nats, temperature 1), "count"}.

    `logits_of` maps images (B, 3, H, W) to logits (B, C). Sums stay on the device until the end; under several
    processes every rank passes its own part (perhaps none). Raises ValueError for no images at all.
    """
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
    sums = torch.zeros(5, dtype=dtype, device=device)
    for batch in batches:
        logits = logits_of(batch["image"]).float()
        target = batch["target"]
        ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == target[:, None]
        loss = F.cross_entropy(logits, target, reduction="sum")
        row = (ranked[:, 0].sum(), ranked.sum(), loss, entropy(logits).sum(), torch.full_like(loss, len(target)))
        sums += torch.stack([value.to(dtype) for value in row])
    top1, top5, loss, mean_entropy, count = sum_over_ranks(sums).tolist()
    if not count:
        raise ValueError("no images to evaluate on")
    return {
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "loss": loss / count,
        "entropy": mean_entropy / count,
        "count": int(count),
    }
