"""Checkpoint files: written whole or not at all, read without running code, and matched to networks in plain words."""

import argparse
import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from mdistiller.engine.pickles import check_file, reason_of
from mdistiller.engine.weights import fitting_state, say_choice
from mdistiller.errors import UserError
from mdistiller.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[2]
# Teacher files of the public archives hold their training options; reading a Namespace runs no code.
torch.serialization.add_safe_globals([argparse.Namespace])

# Where a teacher is looked for, below checkpoints/ and download_ckpts/ of the working folder and of the repository.
TEACHER_FILES = {
    "cifar100": "cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth",
    "tiny_imagenet": "tiny_imagenet_teachers/{name}_vanilla/ti_res18",
}


def save(content: dict, path: Path, keep: Path | None = None) -> None:
    """Write a checkpoint so that the name always holds a whole file (temporary file, fsync, rename).

    What stood under the name is first renamed to `keep`, if given. Raises RunError when the disk is full or read-only,
    UserError where no file can be; what stood under both names is then untouched.
    """
    write_atomically(path, lambda file: torch.save(content, file), keep)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The content of a checkpoint, read with `weights_only`. Raises UserError when it is missing, damaged or unsafe."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for names that are too long
        raise UserError(f"{path}: no such checkpoint")
    try:
        check_file(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged files raise nearly anything, from EOFError to UnpicklingError
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict or a state dict, found {type(content).__name__}")
    return content


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names and tensors, for weights that came without a file of ours."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_network(network: nn.Module, path: str | Path, name: str, key: str | None = None) -> dict:
    """Load a checkpoint file into `network`, every key accounted for; returns the file's content.

    The weights are found as `fitting_state` says; `key` names them where a file has several. A file that says
    `part`, how names begin, holds that part of a network alone; the rest stays as it is. Raises UserError that says in
    one line what does not fit.
    """
    content = load(path)
    try:
        state, fits = fitting_state(_completed(content, network), network, key)
    except ValueError as error:
        raise UserError(f"{path}: does not fit the network {name}: {error}") from None
    say_choice(path, fits)
    network.load_state_dict(state)
    return content


def _completed(content, network):
    """The content; of a file of a part of a network, with the network's own weights for the rest."""
    part, state = content.get("part"), content.get("model")
    if not isinstance(part, str) or not isinstance(state, dict):
        return content
    return {"model": {key: value for key, value in network.state_dict().items() if not key.startswith(part)} | state}


def find_teacher(dataset: str, name: str, configured: str | None) -> Path:
    """The teacher's checkpoint: the configured file, or the first of the usual places. Raises UserError if none is."""
    if configured:
        for root in (Path(), REPOSITORY):
            if os.path.isfile(root / configured):
                return root / configured
        raise UserError(f"DISTILLER.TEACHER_CHECKPOINT: no such file: {configured}")
    places = [f"{dataset}/{name.replace('/', '-').replace(':', '-')}.pth"]
    if dataset in TEACHER_FILES:
        places.append(TEACHER_FILES[dataset].format(name=name))
    for root in dict.fromkeys((Path().resolve(), REPOSITORY)):
        for folder in ("checkpoints", "download_ckpts"):
            for place in places:
                if (root / folder / place).is_file():
                    return root / folder / place
    recipes = f"configs/{dataset}/vanilla/"
    how = f"train one ({recipes if (REPOSITORY / recipes).is_dir() else 'DISTILLER.TYPE NONE'})"
    if dataset == "cifar100":
        how = f"fetch the public ones (python tools/fetch_teachers.py cifar100), {how}"
    raise UserError(
        f"DISTILLER.TEACHER_CHECKPOINT: no checkpoint of {name} for {dataset} in checkpoints/ or download_ckpts/ "
        f"({' or '.join(places)}); {how} or name its file"
    )
