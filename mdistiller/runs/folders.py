"""Walking through folders of runs."""

import os
from collections.abc import Iterator
from pathlib import Path

from mdistiller.errors import UserError


def folders_below(root: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of `root` and every folder below it.

    Symbolic links to folders are followed, and each folder comes once, even if links form a circle.
    """
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
        yield Path(folder), names


def check_folder(path: str | Path, option: str = "--runs") -> None:
    """Raise UserError, naming the option of the command line, where `path` is no folder."""
    if not Path(path).is_dir():
        raise UserError(f"{option}: no such folder: {path}")
