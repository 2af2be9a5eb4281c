"""Conversion of detectors trained with detectron2 into checkpoints of this project."""

from pathlib import Path

import torch

from mdistiller.engine import checkpoints
from mdistiller.engine.numpy_numbers import read_arrays
from mdistiller.errors import UserError
from mdistiller.models.detection.convert import convert_detectron2, name_of, split_pair

BODY = "model.backbone.body."
DATASET = "coco"


def convert_file(path: str | Path, folder: str | Path) -> list[Path]:
    """Write the networks of a detectron2 file into `folder`/coco/; returns the files.

    A .pkl file is a detector of detectron2's model zoo. A .pth file is a detector with the same parameter names, or, if
    it has entries that begin with "teacher.", a teacher together with the ImageNet weights of its student's backbone
    (the format of published pairs). No code in the file is executed. Raises UserError for any other file.
    """
    path, folder = Path(path), Path(folder) / DATASET
    if path.suffix == ".pkl":
        state = read_arrays(path)
    else:
        content = checkpoints.load(path)
        state = content.get("model", content)
        if not isinstance(state, dict) or not all(map(_is_weight, state.items())):
            raise UserError(f"{path}: expected a state dict of weights by name, perhaps under the key model")
    written = []
    try:
        if any(name.startswith("teacher.") for name in state):
            teacher, body = split_pair(state)
            if body:
                written.append(_save({"model": body, "part": BODY}, folder / f"{name_of(body)}_imagenet.pth"))
        else:
            teacher = convert_detectron2(state)
        written.insert(0, _save({"model": teacher}, folder / f"{name_of(teacher)}.pth"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return written


def _is_weight(entry):
    name, value = entry
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _save(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(content, path)
    return path
