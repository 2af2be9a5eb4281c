"""Checks of stored data: a teacher's checkpoint and its logits."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mdistiller.engine import checkpoints
from mdistiller.library.doctor.finding import Case, Finding, finite, many

PREFIXES = {  # prefix of keys -> what adds it
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "model.": "a wrapper, as Lightning's modules are",
    "student.": "mdistiller's runs",
}
INSIDE = ("model", "state_dict", "net", "student")  # keys of checkpoints that contain the weights
STORED_TOLERANCE = 0.05  # relative to the spread of the logits: float16 keeps three digits


def check_checkpoint(case: Case) -> Iterator[Finding]:
    """Faults if the teacher's weights are not those of the checkpoint passed to `diagnose`."""
    checkpoint, teacher = case.settings.get("checkpoint"), case.kd.teacher
    if checkpoint is None or teacher is None:
        return
    if isinstance(checkpoint, str | Path):
        checkpoint = checkpoints.load(checkpoint)
    for name in INSIDE:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping):
            checkpoint = inner
            break
    own = teacher.state_dict()
    missing = [name for name in own if name not in checkpoint]
    for prefix, origin in PREFIXES.items():
        if missing and any(prefix + name in checkpoint for name in missing):
            yield Finding(
                "prefix in the checkpoint",
                f"keys of the checkpoint begin with {prefix!r} ({origin}): "
                "load_state_dict(strict=False) takes none of them; remove it",
            )
            return
    if missing:
        yield Finding(
            "checkpoint incomplete",
            f"the checkpoint lacks {many(missing)} of the teacher, which keep the values of a new network",
        )
    shapes = [
        name
        for name, value in own.items()
        if name in checkpoint and tuple(value.shape) != tuple(checkpoint[name].shape)
    ]
    if shapes:
        yield Finding(
            "checkpoint of another network", f"{many(shapes)} have other shapes in the checkpoint than in the teacher"
        )
        return
    other = [
        name
        for name, value in own.items()
        if name in checkpoint and not torch.equal(value.cpu().float(), checkpoint[name].cpu().float())
    ]
    if other:
        yield Finding(
            "checkpoint not loaded",
            f"{many(other)} of the teacher are not those of the checkpoint: it was not loaded, or was trained on since",
        )


def check_stored(case: Case) -> Iterator[Finding]:
    """Faults if the batch's stored logits are not those of this teacher on these samples."""
    stored, live = case.stored, case.logits_teacher
    if stored is None or live is None:
        return
    if stored.shape != live.shape:
        yield Finding(
            "stored logits of another shape",
            f"the stored logits have shape {tuple(stored.shape)}, the teacher's are {tuple(live.shape)}",
        )
        return
    stored, live = stored.float(), live.float()
    if not finite(stored):
        yield Finding("stored logits not finite", "the stored logits hold infinity or NaN: were they kept in float16?")
        return
    limit = STORED_TOLERANCE * float(live.std()) + 1e-6
    if float((stored - live).abs().mean()) <= limit:
        return
    nearest = torch.cdist(live, stored).argmin(dim=1)
    gaps = (stored[nearest] - live).abs().mean()
    if float(gaps) <= limit:
        yield Finding(
            "stored logits in another order",
            "the stored logits are this teacher's, of other rows of the batch: "
            "the loader was shuffled since; store them by sample number",
        )
        return
    yield Finding(
        "stored logits of another teacher",
        "the stored logits are not what the teacher says of these samples: "
        "they are of another teacher, other images or another "
        "augmentation; store them again",
    )


@torch.no_grad()
def check_determinism(run: Callable[[], Tensor]) -> Iterator[Finding]:
    """A fault if two passes of the teacher, by `run()`, give different logits."""
    first, second = run(), run()
    limit = 1e-3 * float(first.float().std()) + 1e-6
    if finite(first) and finite(second) and float((first.float() - second.float()).abs().max()) > limit:
        yield Finding(
            "dropout in the teacher",
            "two passes of the teacher over one batch differ: dropout or another "
            "random layer is active in it; call teacher.eval() after kd.train()",
        )
