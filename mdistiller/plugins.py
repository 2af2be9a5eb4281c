"""Python files of the user: networks, and methods that register themselves, imported by path. Imports no torch."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mdistiller import files
from mdistiller.errors import UserError, first_line

NAMED_BY = ("EXPERIMENT.PLUGINS", "DISTILLER.STUDENT", "DISTILLER.TEACHER")  # keys whose values may name such files


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


def own_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name and SHA-256 of each Python file of the user that a configuration, by dotted keys, names and that exists.

    Of different files of one name, those of all, with + between them.
    """
    values = [settings.get(key) for key in NAMED_BY]
    named = [value for each in values for value in (each if isinstance(each, list | tuple) else (each,))]
    paths = [Path(_split(value)[0]) for value in named if isinstance(value, str)]
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        if path.suffix == ".py" and (digest := _digest(path)):
            found.setdefault(path.name, {})[digest] = None
    return {name: "+".join(digests) for name, digests in found.items()}


def _digest(path):
    try:
        return files.sha256(path) if path.is_file() else None
    except OSError:  # importing it will say why it cannot be read
        return None


def recorded_files(record: Any) -> dict[str, str]:
    """What a record, such as run.json or one of its sessions, says of `own_files`; empty in older or odd records."""
    found = record.get("own_files") if isinstance(record, Mapping) else None
    each = found.items() if isinstance(found, Mapping) else ()
    return {name: digest for name, digest in each if isinstance(digest, str)}


def without_folders(value: Any) -> Any:
    """The value of a setting with the name of each Python file alone, which may lie elsewhere on another machine."""
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str) or ".py" not in value:
        return value
    file, rest = _split(value)
    return f"{Path(file).name}{rest}" if file.endswith(".py") else value


def _split(value):
    """The file and the rest of `<file>.py:<class>`; any other text has no rest."""
    file, colon, name = value.rpartition(":")
    return (file, f":{name}") if file.endswith(".py") else (value, "")
