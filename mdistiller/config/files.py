"""YAML files and the files that they inherit from, as plain dicts. Needs no torch, so that reports can read them."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from mdistiller.config.words import expanded, shown
from mdistiller.errors import UserError

BASE_KEY = "_BASE_"
MOST_BYTES = 2**24
MOST_VALUES = 10**6  # of a file with its aliases written out; the largest of this project has some thousands
MOST_FILES = 4000  # that one file inherits from, each counted as often as it is named
MERGE = "tag:yaml.org,2002:merge"  # "<<: *anchor", whose keys may be written again


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key written twice in one mapping, and aliases that grow beyond bounds."""

    def get_single_data(self):
        node = self.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_VALUES:
            raise _problem(f"its aliases grow to more than {MOST_VALUES:,} values")
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
    """How many values a YAML node holds when each alias is written out."""
    if id(node) in known:
        if known[id(node)] is None:
            raise _problem("an alias within what it names", node.start_mark)
        return known[id(node)]
    known[id(node)] = None  # its own children may not be it
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    total = 1
    for child in children:
        total += sum(_size(part, known) for part in (child if isinstance(child, tuple) else (child,)))
    known[id(node)] = total
    return total


def parse(text: str):
    """A text as YAML; one that is no YAML, such as a path with a colon, stands for itself."""
    text = str(text)
    try:
        return yaml.load(text, Loader=_Loader) if text.strip() else text
    except Exception:  # PyYAML lets many kinds through
        return text


def read_yaml(path: str | Path) -> dict:
    """One YAML file as a dict, without looking at `_BASE_`. Raises UserError naming the file (and line) otherwise."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{path}: expected at most {MOST_BYTES >> 20} MiB of YAML")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML lets many kinds through, such as KeyError for "!!bool maybe"
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
    """The file and what it inherits, in the order in which they count: [(path, tree without `_BASE_`), ...].

    `_BASE_` is a file, or a list of files of which the later ones win, relative to the file that names it; "~" and
    "$VARIABLES" in it are expanded. Raises UserError when a file is missing or inherits from itself.
    """
    links: list[tuple[str, dict]] = []
    known: dict[Path, dict] = {}
    unfinished: dict[Path, tuple[str, dict, Iterator[str]]] = {}  # files whose bases are being read, in order
    current, named_by = Path(path), None
    while True:
        resolved, exists = _resolve(current)
        if resolved in unfinished:
            raise UserError(f"{named_by}: {BASE_KEY}: {current} leads back to itself")
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
    except (OSError, ValueError):  # a name that no file can have
        return path, False
