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

# Teacher files of the public archives hold their training options; reading a Namespace runs no code.
torch.serialization.add_safe_globals([argparse.Namespace])


def save(content: dict, path: Path, keep: Path | None = None) -> None:
    """Write a checkpoint atomically: temporary file, fsync, rename. The path never holds an incomplete file.

    An existing file at `path` is first renamed to `keep`, if given. Raises RunError when the disk is full or read-only,
    UserError when no file can be written at this path; existing files are then left unchanged.
    """
    write_atomically(path, lambda file: torch.save(content, file), keep)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The content of a checkpoint, read with `weights_only`. Raises UserError when it is missing, damaged or unsafe."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for names that are too long
        try:
            os.stat(path)
        except PermissionError as error:  # of a folder above it, such as another user's
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except (OSError, ValueError):
            pass
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


def load_network(network: nn.Module, path: str | Path, name: str, key: str | None = None, part: bool = False) -> dict:
    """Load a checkpoint file into `network` strictly; returns the content of the file.

    `fitting_state` finds the weights in the file; `key` selects them when the file holds several. If the file has an
    entry `part` (a prefix of parameter names), it holds only the parameters with this prefix; with `part` all others
    keep their values, without it the file is refused. Raises UserError when the weights do not fit; its one line says
    which entries differ.
    """
    content = load(path)
    prefix, state = content.get("part"), content.get("model")
    partial = bool(prefix) and isinstance(prefix, str) and isinstance(state, dict) and all(
        str(key).startswith(prefix) for key in state)
    if partial and not part:
        raise UserError(f"{path}: holds only the weights {prefix}* of a network, with which a student can begin "
                        "(DISTILLER.STUDENT_CHECKPOINT); expected all weights")
    if partial:
        others = {key: value for key, value in network.state_dict().items() if not key.startswith(prefix)}
    try:
        state, fits = fitting_state({"model": others | state} if partial else content, network, key)
    except ValueError as error:
        raise UserError(f"{path}: does not fit the network {name}: {error}") from None
    say_choice(path, fits)
    network.load_state_dict(state)
    return content


def load_to_train(network: nn.Module, path: str | Path, name: str, key: str | None = None, part: bool = False) -> None:
    """`load_network` for a teacher or the start of a student, which need finite weights. Raises UserError for others.

    Buffers may hold infinity, as masks do.
    """
    load_network(network, path, name, key, part)
    bad = [name for name, value in network.named_parameters() if not value.isfinite().all()]
    bad += [name for name, value in network.named_buffers() if value.isnan().any()]
    if bad:
        raise UserError(f"{path}: {len(bad)} of its weights hold NaN or infinity ({bad[0]}, ...): it is damaged, or of "
                        "a training that failed; use another checkpoint")
