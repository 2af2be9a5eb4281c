"""The files of an analysis: figure_<n>_<name>.csv and .npz, and figure_<n>.json with the measured runs."""

import json
from pathlib import Path

import numpy as np

from mdistiller.files import csv_text, write_atomically, write_text


def write(folder: Path, figure: str, content: dict, metadata: dict) -> list[Path]:
    """Write the tables (lists of rows) and arrays (dicts) of a figure, then the JSON file; returns the paths."""
    paths = []
    for name, part in content.items():
        path = folder / f"figure_{figure}_{name}.{'csv' if isinstance(part, list) else 'npz'}"
        if isinstance(part, list):
            write_text(path, csv_text(list(part[0]), part))
        else:
            write_atomically(path, lambda file, part=part: np.savez(file, **part))
        paths.append(path)
    metadata = {"figure": figure, "files": [path.name for path in paths], **metadata}
    write_text(marker(folder, figure), json.dumps(metadata, indent=1) + "\n")
    return [*paths, marker(folder, figure)]


def marker(folder: Path, figure: str) -> Path:
    """The file that exists when the figure has been measured completely."""
    return folder / f"figure_{figure}.json"
