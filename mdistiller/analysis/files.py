"""The files of an analysis: figure_<n>_<name>.csv and .npz, and figure_<n>.json, which says where they come from."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from mdistiller.files import write_atomically


def write(folder: Path, figure: str, content: dict, facts: dict) -> list[Path]:
    """Write the tables (lists of rows) and arrays (dicts) of a figure, the JSON last; returns what was written."""
    paths = []
    for name, part in content.items():
        path = folder / f"figure_{figure}_{name}.{'csv' if isinstance(part, list) else 'npz'}"
        write_atomically(path, _csv(part) if isinstance(part, list) else lambda file, part=part: np.savez(file, **part))
        paths.append(path)
    facts = {"figure": figure, "files": [path.name for path in paths], **facts}
    write_atomically(marker(folder, figure), lambda file: file.write((json.dumps(facts, indent=1) + "\n").encode()))
    return [*paths, marker(folder, figure)]


def marker(folder: Path, figure: str) -> Path:
    """The file that is there when the figure has been measured to the end."""
    return folder / f"figure_{figure}.json"


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lambda file: file.write(text.getvalue().encode())
