"""Reads YAML files, and the files that they inherit from, as plain dicts. Imports no torch, as reports use it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mdistiller.config.words import Typed, expanded, shown
from mdistiller.errors import UserError
from mdistiller.files import open_plain

BASE_KEY = "_BASE_"
MOST_BYTES = 2**24
MOST_VALUES = 10**6  # in a file with its aliases expanded; the largest file of this project has some thousands
MOST_FILES = 4000  # in the inheritance of one file, each counted as often as it is named
TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"  # "<<: *anchor", whose keys may be repeated
NUMBERS = {  # what is a number without quotes, instead of YAML 1.1's: 010 is not octal there, 1:30 not of base 60
    f"{TAG}int": re.compile(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)$"),
    f"{TAG}float": re.compile(
        r"([-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
}


class _Checked:
    """Of a safe loader: also rejects repeated keys in a mapping and aliases that expand to too many values.

    Departs from YAML 1.1: integers are written as in Python, and dates, 010, 1_000 and 1:30 are texts.
    """

    yaml_implicit_resolvers = {
        first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in kinds if tag != f"{TAG}timestamp"]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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

    def construct_int(self, node):
        return int(self.construct_scalar(node), 0)


class _Loader(_Checked, yaml.SafeLoader):
    """Numbers are numbers."""


class _Quick(_Checked, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The same with libyaml where PyYAML has it, ten times as fast; the messages about errors are less clear."""


for _loader in (_Loader, _Quick):
    _loader.add_constructor(f"{TAG}int", _loader.construct_int)


class _AsWritten(_Loader):
    """Numbers are `Typed`, so that a key of text has them as they are written."""

    def construct_number(self, node):
        return Typed(self.construct_scalar(node))


for _tag in NUMBERS:
    _AsWritten.add_constructor(_tag, _AsWritten.construct_number)


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


def plain(value: Any) -> Any:
    """The value with every `Typed` word in it read as YAML."""
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return parse(value) if isinstance(value, Typed) else value


def read_yaml(path: str | Path) -> dict:
    """One YAML file as a dict, without reading its `_BASE_`. Raises UserError, with file and line, if that fails."""
    return _read(path, _Quick, _Loader)


def _read(path, *loaders):
    """The value of a file by the first loader that can read it; the last one reports what is wrong."""
    try:
        with open_plain(path) as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: expected at most {MOST_BYTES >> 20} MiB of YAML")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if "\0" in text:  # UTF-16 of English words
        raise UserError(f"{path}: cannot be read: a NUL byte at byte {data.index(0)}; save it as UTF-8")
    for loader in loaders:
        try:
            tree = yaml.load(text, Loader=loader)
            break
        except Exception as error:  # PyYAML raises many kinds, such as KeyError for "!!bool maybe"
            failure = error
    else:
        mark = getattr(failure, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(failure, "problem", None) or " ".join(str(failure).split()) or type(failure).__name__
        raise UserError(f"{line}: not valid YAML: {problem}")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(plain(tree)).__name__}")
    return tree


def chain(path: str | Path) -> list[tuple[str, dict]]:
    """The file and all files that it inherits from: [(path, tree without `_BASE_`), ...], where later ones win.

    Numbers are `Typed`, as on the command line: only the key of a value tells whether it is one or a text.

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
            known[resolved] = _read(current, _AsWritten)
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
    value = plain(value)
    bases = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {BASE_KEY}: expected the path of a YAML file or a list of them; found {shown(value)}")
    return [expanded(base) for base in bases]


def _resolve(path):
    try:
        return path.resolve(), path.is_file()
    except (OSError, ValueError):  # not a valid file name
        return path, False
