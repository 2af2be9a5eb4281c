"""Image classification: a sample is an image."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.distributed import sum_over_ranks
from mdistiller.errors import UserError
from mdistiller.functional import entropy, wide
from mdistiller.models import AtInputSize, build_model, try_out
from mdistiller.models.base import as_output
from mdistiller.tasks.base import TASKS, Task

STANDARD_IMAGE_SIZE = 32
TOP_K = 5
NEAR_CHANCE = 2.0  # factor of the accuracy of random guessing


@TASKS.register("classification")
class Classification(Task):
    """One label per image. Networks map images (B, 3, H, W) to logits (B, num_classes) or (logits, features)."""

    headline = "top1"
    metrics = ("top1", "top5", "loss")
    unit = "images"
    teacher_waits = False

    def network(self, role, pretrained=False):
        cfg, info = self.cfg, self.info
        name, size, pixels = (cfg.DISTILLER[role + key] for key in ("", "_INPUT_SIZE", "_NORMALIZATION"))
        try:
            extra = {"image_size": size} if ":" in name else {}
            network = build_model(name, info.num_classes, family=info.family, pretrained=pretrained, **extra)
        except UserError as error:
            raise UserError(f"DISTILLER.{role}: {error}") from None
        data = (info.mean, info.std)
        own = getattr(network, "normalisation", None)
        if pixels == "own" and own is None:
            raise UserError(f"DISTILLER.{role}_NORMALIZATION: {name} has no normalisation of its own; expected data")
        if pixels == "data" or own is None:
            own = data
        size = size or getattr(network, "input_size", None)
        if size not in (None, info.image_size) or own != data:
            network = AtInputSize(network, size, data, own)
        try:
            try_out(network, info.num_classes, info.image_size)
        except UserError as error:
            raise UserError(f"DISTILLER.{role}: {name}: {error}") from None
        return network

    def inputs(self, batch, view):
        if view not in batch:
            raise ValueError(f"needs {view!r}, a second view of the images, in the batch")
        return batch[view]

    def run_student(self, network, inputs):
        return as_output(network, network(inputs))

    def run_teacher(self, network, inputs, student=None):
        return as_output(network, network(inputs))

    def target(self, batch, student):
        return batch["target"]

    def supervised(self, outputs, target, label_smoothing):
        return {"ce": sum(F.cross_entropy(out.logits, target, label_smoothing=label_smoothing) for out in outputs)}

    def progress(self, logits, target):
        return {"top1": logits.argmax(dim=1) == target}

    def evaluate(self, network, batches, device="cpu"):
        return evaluate(network, batches, device)

    def doubt(self, result):
        chance = 100 / self.info.num_classes
        if result["top1"] >= NEAR_CHANCE * chance:
            return None
        return (
            f"accuracy of {result['top1']:.2f} is near chance ({chance:.2f}): was its checkpoint trained with these "
            "classes, in this order, and with this normalisation?"
        )

    def blank_inputs(self, size, like):
        size = size or self.info.image_size or STANDARD_IMAGE_SIZE
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, 3, height, width, device=like.device, dtype=like.dtype)


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[dict], device: torch.device | str = "cpu") -> dict[str, float]:
    """{"top1", "top5" (percent), "loss" (cross-entropy, nats), "entropy" (mean, nats, temperature 1), "count"}.

    `network` maps images (B, 3, H, W) to logits (B, C) or (logits, features). Sums stay on the device until the end.
    With several processes, each rank passes its own batches, which may be none. Raises ValueError if there are no
    images.
    """
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
    sums = torch.zeros(5, dtype=dtype, device=device)
    for batch in batches:
        logits = wide(as_output(network, network(batch["image"])).logits)
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
