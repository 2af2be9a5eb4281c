"""Checkpoint files: written atomically, read without executing code, and loaded into networks with clear errors."""

import argparse
import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from mdistiller.engine.numpy_numbers import numbers_allowed
from mdistiller.engine.pickles import check_file, is_safetensors, reason_of
from mdistiller.engine.weights import fitting_state, say_choice
from mdistiller.errors import UserError
from mdistiller.files import write_atomically
from mdistiller.libraries import import_extra
from mdistiller.places import SHIPPED

# Teacher files of the public archives hold their training options; reading a Namespace runs no code.
torch.serialization.add_safe_globals([argparse.Namespace])

# Usual file names of a teacher, below checkpoints/ or download_ckpts/ of the working folder or of the shipped files.
TEACHER_FILES = {
    "cifar100": "cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth",
    "tiny_imagenet": "tiny_imagenet_teachers/{name}_vanilla/ti_res18",
}


def save(content: dict, path: Path, keep: Path | None = None) -> None:
    """Write a checkpoint atomically: temporary file, fsync, rename. The path never holds an incomplete file.

    An existing file at `path` is first renamed to `keep`, if given. Raises RunError when the disk is full or read-only,
    UserError when no file can be written at this path; existing files are then left unchanged.
    """
    write_atomically(path, lambda file: torch.save(content, file), keep)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The content of a checkpoint, read with `weights_only`. Raises UserError when it is missing, damaged or unsafe."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for names that are too long
        raise UserError(f"{path}: no such checkpoint{_nearest(path)}")
    try:
        if is_safetensors(path):
            content = import_extra("safetensors.torch", f"reading {path}", "export").load_file(path, str(device))
        else:
            check_file(path)
            with numbers_allowed():
                content = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything, from EOFError to UnpicklingError
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict or a state dict, found {type(content).__name__}")
    return content


def _nearest(path):
    if os.path.isdir(path):
        return ": it is a folder; give a file in it, such as student_best.pth, or the folder of a run to --run"
    return f"; there is {path}.pth" if os.path.isfile(f"{path}.pth") else ""


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names and tensors of a state dict, for weights that were not read from a file."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_network(network: nn.Module, path: str | Path, name: str, key: str | None = None) -> dict:
    """Load a checkpoint file into `network` strictly; returns the content of the file.

    `fitting_state` finds the weights in the file; `key` selects them when the file holds several. If the file has an
    entry `part` (a prefix of parameter names), it holds only the parameters with this prefix, and all others keep their
    values. Raises UserError when the weights do not fit; its one line says which entries differ.
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
    """The content of a file; if it holds only a part of a network, completed with the network's current weights."""
    part, state = content.get("part"), content.get("model")
    if not isinstance(part, str) or not isinstance(state, dict):
        return content
    return {"model": {key: value for key, value in network.state_dict().items() if not key.startswith(part)} | state}


def find_teacher(dataset: str, name: str, configured: str | None) -> Path:
    """Path of the teacher's checkpoint: the configured file, else the first usual path that exists.

    Raises UserError when there is no such file.
    """
    if configured:
        for root in (Path(), SHIPPED):
            if os.path.isfile(root / configured):
                return root / configured
        raise UserError(f"DISTILLER.TEACHER_CHECKPOINT: no such file: {configured}")
    places = [f"{dataset}/{name.replace('/', '-').replace(':', '-')}.pth"]
    if dataset in TEACHER_FILES:
        places.append(TEACHER_FILES[dataset].format(name=name))
    for root in dict.fromkeys((Path().resolve(), SHIPPED)):
        for folder in ("checkpoints", "download_ckpts"):
            for place in places:
                if (root / folder / place).is_file():
                    return root / folder / place
    recipes = f"configs/{dataset}/vanilla/"
    how = f"train one ({recipes if (SHIPPED / recipes).is_dir() else 'DISTILLER.TYPE NONE'})"
    if dataset == "cifar100":
        how = f"fetch the public ones (python tools/fetch_teachers.py cifar100), {how}"
    raise UserError(
        f"DISTILLER.TEACHER_CHECKPOINT: no checkpoint of {name} for {dataset} in checkpoints/ or download_ckpts/ "
        f"({' or '.join(places)}); {how} or set its path"
    )
