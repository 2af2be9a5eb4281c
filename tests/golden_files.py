"""Numbers from the reference implementations, with the tolerances of their manifests."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
LOGIT = json.loads((GOLDEN / "logit" / "manifest.json").read_text())
FEATURE = json.loads((GOLDEN / "feature" / "manifest.json").read_text())


def logit_cases(*methods):
    """Entries of the logit manifest for these methods, as pytest parameters named by file."""
    entries = [entry for entry in LOGIT["files"] if entry["method"] in methods]
    assert entries, f"no golden for {methods}"
    return entries


def case_name(entry):
    return entry["file"].removesuffix(".npz")


def load(folder, file):
    """The arrays of one file; 0-d numbers become Python scalars."""
    with np.load(GOLDEN / folder / file, allow_pickle=False) as arrays:
        return {name: arrays[name].item() if arrays[name].ndim == 0 else arrays[name] for name in arrays.files}


def tensors(case, *names, dtype=torch.float64):
    """Arrays of a case as tensors; floating ones in `dtype`."""
    found = [torch.from_numpy(np.array(case[name])) for name in names]
    return [array.to(dtype) if array.is_floating_point() else array for array in found]


def tolerance_of(entry, dtype):
    """The manifest's {"rtol", "atol"} for results computed in `dtype`."""
    return entry["tolerance"][str(dtype).removeprefix("torch.")]


def close(actual, expected, tolerance, what=""):
    """Assert equality within a manifest tolerance {"rtol", "atol"}."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.float64)
    actual = actual.reshape(expected.shape)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}: {text}")


def close_relative(actual, expected, tolerance, what=""):
    """Assert max|a - b| <= tolerance * max|b|, as the model and feature manifests compare."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.float64)
    error = (actual.reshape(expected.shape) - expected).abs().max()
    assert error <= tolerance * expected.abs().max().clamp_min(1e-30), f"{what}: off by {error}"
