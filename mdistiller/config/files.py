"""YAML files and their `_BASE_` chains as plain dicts. Needs no torch, so that reports can read them."""

from pathlib import Path

import yaml

from mdistiller.errors import UserError


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key written twice in one mapping."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<: *anchor", whose keys may be written again
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict:
    """One YAML file as a dict, without looking at `_BASE_`. Raises UserError naming the file (and line) otherwise."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
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
    """The file and its bases, the deepest base first: [(path, tree without `_BASE_`), ...].

    `_BASE_` is relative to the file that names it. Raises UserError when a file is missing or the chain is a loop.
    """
    links, seen, current = [], [], Path(path)
    while True:
        try:
            resolved, exists = current.resolve(), current.is_file()
        except (OSError, ValueError):  # a name that no file can have
            resolved, exists = current, False
        if resolved in seen:
            raise UserError(f"{links[-1][0]}: _BASE_: {current} leads back to itself")
        if links and not exists:
            raise UserError(f"{links[-1][0]}: _BASE_: no such file: {current}")
        seen.append(resolved)
        tree = dict(read_yaml(current))
        base = tree.pop("_BASE_", None)
        links.append((str(current), tree))
        if base is None:
            return links[::-1]
        if not isinstance(base, str):
            raise UserError(f"{current}: _BASE_: expected the path of one YAML file, found {base!r}")
        current = current.parent / base
