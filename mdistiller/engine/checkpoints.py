"""Checkpoint files: written whole or not at all, read without running code, and matched to networks in plain words."""

import argparse
import hashlib
import os
import zipfile
from pathlib import Path

import torch
from torch import nn

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
        _check_sums(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged files raise nearly anything, from EOFError to UnpicklingError
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason[0][:200]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict or a state dict, found {type(content).__name__}")
    return content


def _check_sums(path):
    """Raise BadZipFile where bytes of a checkpoint have changed: a zip file, whose CRC-32 PyTorch does not check."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged: the CRC-32 of {damaged} is another")


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names and tensors, for weights that came without a file of ours."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def network_state(content: dict) -> dict:
    """The state dict of the (trained) network in a checkpoint of ours, of mdistiller, or of the teacher archives.

    A checkpoint of a whole run holds the network under `student.`; data-parallel wrappers add `module.`.
    """
    state = content.get("model", content)
    state = {str(key).removeprefix("module."): value for key, value in state.items()} if isinstance(state, dict) else {}
    prefix = "student."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def load_network(network: nn.Module, path: str | Path, name: str) -> dict:
    """Load a checkpoint file into `network`, every key accounted for; returns the file's content.

    Raises UserError that says in one line what does not fit.
    """
    content = load(path)
    state, own = network_state(content), network.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}  # absent from very old files
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    other = [
        f"{key} is {_shape(state[key])} in the file and {tuple(own[key].shape)} in the network"
        for key in own.keys() & state.keys()
        if _shape(state[key]) != tuple(own[key].shape)
    ]
    problems = [f"{len(missing)} keys missing ({missing[0]}, ...)"] if missing else []
    problems += [f"{len(unexpected)} unknown keys ({unexpected[0]}, ...)"] if unexpected else []
    problems += [sorted(other)[0]] if other else []
    if problems:
        raise UserError(f"{path}: does not fit the network {name}: {'; '.join(problems)}")
    network.load_state_dict({key: state.get(key, own[key]) for key in own})
    return content


def _shape(value):
    """Of a tensor of ordinary numbers; anything else is what it is called."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_meta or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        return f"a tensor on {value.device} of {value.dtype}, {value.layout}"
    return tuple(value.shape)


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
