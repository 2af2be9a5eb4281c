"""Reads YAML files, and the files that they inherit from, as plain dicts. Imports no torch, as reports use it."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from mdistiller.config.words import expanded, shown
from mdistiller.errors import UserError
from mdistiller.files import open_plain

BASE_KEY = "_BASE_"
MOST_BYTES = 2**24
MOST_VALUES = 10**6  # in a file with its aliases expanded; the largest file of this project has some thousands
MOST_FILES = 4000  # in the inheritance of one file, each counted as often as it is named
MERGE = "tag:yaml.org,2002:merge"  # "<<: *anchor", whose keys may be repeated


class _Loader(yaml.SafeLoader):
    """The safe loader, which also rejects repeated keys in a mapping and aliases that expand to too many values."""

    def get_single_data(self):
        node = self.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_VALUES:
            raise _problem(f"its aliases expand to more than {MOST_VALUES:,} values")
        return self.construct_document(node)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _problem(f"key {shown(key)} is written twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _problem(text, mark=None):
    return yaml.constructor.ConstructorError(problem=text, problem_mark=mark)


def _size(node, known):
    """Number of values in a YAML node if each alias is expanded."""
    if id(node) in known:
        if known[id(node)] is None:
            raise _problem("an alias inside the node that it refers to", node.start_mark)
        return known[id(node)]
    known[id(node)] = None  # None marks a node that is being counted
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    total = 1
    for child in children:
        total += sum(_size(part, known) for part in (child if isinstance(child, tuple) else (child,)))
    known[id(node)] = total
    return total


def parse(text: str):
    """The value of a text that is YAML; any other text, such as a path with a colon, is returned unchanged."""
    text = str(text)
    try:
        return yaml.load(text, Loader=_Loader) if text.strip() else text
    except Exception:  # PyYAML raises many kinds of exceptions
        return text


def read_yaml(path: str | Path) -> dict:
    """One YAML file as a dict, without reading its `_BASE_`. Raises UserError, with file and line, if that fails."""
    try:
        with open_plain(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{path}: expected at most {MOST_BYTES >> 20} MiB of YAML")
        text = data.decode("utf-8")
        if "\0" in text:  # UTF-16 of English words
            raise UnicodeDecodeError("utf-8", data, data.index(0), data.index(0) + 1, "a NUL character")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML raises many kinds, such as KeyError for "!!bool maybe"
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{line}: not valid YAML: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return tree


def chain(path: str | Path) -> list[tuple[str, dict]]:
    """The file and all files that it inherits from: [(path, tree without `_BASE_`), ...], where later ones win.

    `_BASE_` is a file, or a list of files of which the later ones win. Its paths are relative to the file that
    contains it; "~" and "$VARIABLES" are expanded. Raises UserError if a file is missing or inherits from itself.
    """
    links: list[tuple[str, dict]] = []
    known: dict[Path, dict] = {}
    unfinished: dict[Path, tuple[str, dict, Iterator[str]]] = {}  # files whose bases are being read, in order
    current, named_by = Path(path), None
    while True:
        resolved, exists = _resolve(current)
        if resolved in unfinished:
            raise UserError(f"{named_by}: {BASE_KEY}: {current} inherits from itself")
        if named_by and not exists:
            raise UserError(f"{named_by}: {BASE_KEY}: no such file: {current}")
        if len(links) + len(unfinished) >= MOST_FILES:
            raise UserError(f"{path}: {BASE_KEY}: expected at most {MOST_FILES:,} files")
        if resolved not in known:
            known[resolved] = read_yaml(current)
        tree = dict(known[resolved])
        unfinished[resolved] = (str(current), tree, iter(_bases(current, tree.pop(BASE_KEY, None))))
        base = None
        while unfinished and base is None:
            named_by, tree, bases = next(reversed(unfinished.values()))
            base = next(bases, None)
            if base is None:
                links.append((named_by, tree))
                unfinished.popitem()
        if base is None:
            return links
        current = Path(named_by).parent / base


def _bases(path, value):
    bases = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {BASE_KEY}: expected the path of a YAML file or a list of them; found {shown(value)}")
    return [expanded(base) for base in bases]


def _resolve(path):
    try:
        return path.resolve(), path.is_file()
    except (OSError, ValueError):  # not a valid file name
        return path, False
