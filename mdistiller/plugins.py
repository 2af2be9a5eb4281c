"""Python files of the user: networks, and methods that register themselves, imported by path. Imports no torch."""

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
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
    """Name and SHA-256 of the user's Python files that a configuration (by dotted keys) names, as far as they exist.

    The files of its folder that such a file imports, directly or through others, are included; their name is the path
    from that folder (`parts/loss.py`). For different files of one name the value is the SHA-256 of each, joined by +.
    """
    values = [settings.get(key) for key in NAMED_BY]
    named = [value for each in values for value in (each if isinstance(each, list | tuple) else (each,))]
    paths = [Path(_split(value)[0]) for value in named if isinstance(value, str)]
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        if path.suffix != ".py" or not os.path.isfile(path):
            continue
        own = path.resolve()  # which finds the files of its own folder, also where the path is a link to it
        for file in _with_imports(own):
            name = path.name if file == own else file.relative_to(own.parent).as_posix()
            if digest := _digest(file):
                found.setdefault(name, {})[digest] = None
    return {name: "+".join(digests) for name, digests in found.items()}


def _digest(path):
    try:
        return files.sha256(path)
    except OSError:  # importing it will say why it cannot be read
        return None


def _with_imports(path):
    """A Python file and the files below its folder that it imports, also through others; nothing is executed."""
    found, left = {}, [path]
    while left:
        file = left.pop()
        if file not in found:
            found[file] = None
            left += _imports(file, path.parent)
    return list(found)


def _imports(file: Path, root: Path) -> Iterator[Path]:
    """The files below the folder `root` that the import statements of a Python file may mean.

    This package is none of them, also for a file beside it: what a run used of it is the commit that run.json holds.
    """
    try:
        names = _imported_names(file.read_bytes())
    except OSError:  # importing it will say why it cannot be read
        return
    for level, name in names:
        parts = name.split(".")
        place = file.parents[level - 1] if 0 < level <= len(file.parents) else root
        for part in parts if level or parts[0] != __package__ else ():
            place = place / part
            both = place.with_name(f"{part}.py"), place / "__init__.py"
            yield from (one for one in both if one.is_relative_to(root) and os.path.isfile(one))


@cache  # a sweep asks for the same file once for each run that it finds
def _imported_names(source: bytes) -> list[tuple[int, str]]:
    """(number of dots before it, dotted name) of whatever a Python file imports; none of a file with a mistake."""
    try:
        statements = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # importing it will say what is wrong
        return []
    found = [(0, alias.name) for node in statements if isinstance(node, ast.Import) for alias in node.names]
    found += [(node.level, f"{node.module or ''}.{alias.name}".strip("."))
              for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names]
    return found


def recorded_files(record: Any) -> dict[str, str]:
    """What a record, such as run.json or one of its sessions, says of `own_files`; empty in older or odd records."""
    found = record.get("own_files") if isinstance(record, Mapping) else None
    each = found.items() if isinstance(found, Mapping) else ()
    return {name: digest for name, digest in each if isinstance(digest, str)}


def edited(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of files whose SHA-256 is not the one recorded; earlier versions recorded no imported files."""
    return [name for name, digest in now.items() if recorded.get(name, digest) != digest]


def same_files(recorded: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether there are files that are recorded, and all of them are as they were."""
    return bool(recorded.keys() & now.keys()) and not edited(recorded, now)


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
