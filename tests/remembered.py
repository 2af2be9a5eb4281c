"""What the tries of tests/fuzz.py read again and again is read once: most files of a try are as they were."""

import copy
from collections.abc import Callable
from functools import cache

from mdistiller.config import files
from mdistiller.runs import records, training

MOST = 500  # contents of YAML files


def remember() -> None:
    """Let this process parse a YAML text, and read a configuration of a table's cell, no second time."""
    files.read_yaml = records.read_yaml = _once_for_each_text(files.read_yaml)
    training.stated = cache(training.stated)


def _once_for_each_text(read_yaml: Callable) -> Callable:
    known: dict = {}

    def read(path):
        try:
            with files.open_plain(path) as file:
                text = file.read()
        except (OSError, ValueError):
            return read_yaml(path)
        if text not in known:
            tree = read_yaml(path)
            if len(known) > MOST:
                return tree
            known[text] = tree
        return copy.deepcopy(known[text])

    return read
