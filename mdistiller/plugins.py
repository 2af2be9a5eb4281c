"""Imports Python files of the user by path: networks, and methods that register themselves. Imports no torch."""

import hashlib
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from mdistiller.errors import UserError, first_line


def import_file(file: str | Path) -> ModuleType:
    """The module of a Python file, whose path is relative to the working folder; imported again if it has changed.

    It may import the files beside it, as a script may. Raises UserError, with the file and the line, if it is missing
    or cannot be imported.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _import(path.resolve(), path.stat().st_mtime_ns)


@cache
def _import(path, changed):
    name = f"mdistiller_user_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ != str(path):
        name += "_" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pickle looks for classes
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        # Not `exec_module`, which reuses the compiled file of an edit within the same second.
        exec(spec.loader.source_to_code(path.read_bytes(), path), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else path
        reason = first_line(error, kind=not isinstance(error, UserError))
        raise UserError(f"{where}: cannot be imported: {reason}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module
