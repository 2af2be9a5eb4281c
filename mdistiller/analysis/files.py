"""The files of an analysis: figure_<n>_<name>.csv and .npz, and figure_<n>.json with the measured runs."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from mdistiller.files import write_atomically


def write(folder: Path, figure: str, content: dict, metadata: dict) -> list[Path]:
    """Write the tables (lists of rows) and arrays (dicts) of a figure, then the JSON file; returns the paths."""
    paths = []
    for name, part in content.items():
        path = folder / f"figure_{figure}_{name}.{'csv' if isinstance(part, list) else 'npz'}"
        write_atomically(path, _csv(part) if isinstance(part, list) else lambda file, part=part: np.savez(file, **part))
        paths.append(path)
    metadata = {"figure": figure, "files": [path.name for path in paths], **metadata}
    write_atomically(marker(folder, figure), lambda file: file.write((json.dumps(metadata, indent=1) + "\n").encode()))
    return [*paths, marker(folder, figure)]


def marker(folder: Path, figure: str) -> Path:
    """The file that exists when the figure has been measured completely."""
    return folder / f"figure_{figure}.json"


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lambda file: file.write(text.getvalue().encode("utf-8", "backslashreplace"))
