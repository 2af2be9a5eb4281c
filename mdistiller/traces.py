"""Files of entropies and sample weights of a fixed set of images, one per epoch, in a run folder. Needs no torch."""

from pathlib import Path

import numpy as np

from mdistiller.errors import UserError

FOLDER = "entropy_trace"  # in a run folder
MEASURED = ("entropy_student", "entropy_teacher", "kd_loss", "weight")  # arrays (N,) of each file


def read_trace(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Epoch -> arrays of <run>/entropy_trace. Raises UserError when they are missing or damaged."""
    files = by_epoch(folder / FOLDER, ".npz")
    if not files:
        raise UserError(f"{folder}: no {FOLDER}; train with LOG.ENTROPY_TRACE 5000 (a number of images)")
    return {epoch: _read_arrays(path) for epoch, path in files.items()}


def by_epoch(folder: Path, suffix: str) -> dict[int, Path]:
    """{n: path of epoch_<n><suffix>}, ascending."""
    numbers = {path: path.stem.removeprefix("epoch_") for path in folder.glob(f"epoch_*{suffix}")}
    return {int(number): path for path, number in sorted(numbers.items(), key=lambda entry: entry[1].zfill(9))
            if number.isdecimal()}


def _read_arrays(path):
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as error:  # damaged files cause many kinds of exceptions
        raise UserError(f"{path}: not a file of arrays ({type(error).__name__}); train again, or delete it") from error
    missing = [name for name in MEASURED if name not in arrays]
    if missing:
        raise UserError(f"{path}: holds no {missing[0]}; train again, or delete it")
    return arrays
