"""Imports Python files of the user by path: networks, and methods that register themselves. Imports no torch."""

import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from mdistiller.errors import UserError, first_line


def import_file(file: str | Path) -> ModuleType:
    """The module of a Python file, whose path is relative to the working folder; it is imported only once.

    Raises UserError, with the file and the line, if it is missing or cannot be imported.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _import(path.resolve())


@cache
def _import(path):
    spec = importlib.util.spec_from_file_location(f"mdistiller_user_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pickle looks for classes
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else path
        reason = first_line(error, kind=not isinstance(error, UserError))
        raise UserError(f"{where}: cannot be imported: {reason}") from error
    return module
