"""Walking through folders of runs."""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mdistiller.errors import UserError

log = logging.getLogger("mdistiller")


def folders_below(root: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of `root` and every folder below it.

    Symbolic links to folders are followed, and each folder comes once, even if links form a circle. A folder that
    cannot be read, such as another user's, is left out with a warning.
    """
    seen = set()
    for folder, below, names in os.walk(root, onerror=_say_left_out, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
        yield Path(folder), names


def _say_left_out(error):
    if not isinstance(error, FileNotFoundError):  # deleted meanwhile
        _say_once(f"{error.filename}: left out: {error.strerror}")


@functools.cache
def _say_once(words):
    """Log a warning once, since pages that are kept up to date read all folders again and again."""
    log.warning(words)


def check_folder(path: str | Path, option: str = "--runs") -> None:
    """Raise UserError, naming the option of the command line, where `path` is no folder."""
    if not Path(path).is_dir():
        raise UserError(f"{option}: no such folder: {path}")
