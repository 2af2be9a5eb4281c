"""The keys that a file and overrides set, checked without the methods and so without torch: for plans and reports."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mdistiller.config.public as public
from mdistiller.config.files import BASE_KEY, chain, parse, plain
from mdistiller.config.key import Key
from mdistiller.config.keys import GENERAL, KEYS, OTHER_SPELLINGS
from mdistiller.config.words import Typed, nearest, shown
from mdistiller.errors import UserError
from mdistiller.places import find_config
from mdistiller.registry import ea_name, split_ea

MOST_BITS = 1000  # of an integer, so that it has a float
COMMAND_LINE = "command line"
TYPE, EA, PLUGINS = "DISTILLER.TYPE", "DISTILLER.EA", "EXPERIMENT.PLUGINS"
RECORDED = ("DISTILLER.TYPE", "DATASET.TYPE", "DISTILLER.TEACHER", "DISTILLER.STUDENT", "SOLVER.EPOCHS")  # in any run
BASE = {name: key.default for name, key in GENERAL.items()}  # the default of every key that is not a method's own


class Reading:
    """The keys that a file, the files that it inherits from, and the overrides set.

    `values` holds them by dotted name, checked and converted to their type, and `sources` the file (or "command line")
    that set each of them last. At first they hold the method and the plug-ins alone, which decide what the other keys
    are; `read` adds these. Nodes of methods are then kept in `waiting`, as they are written, until `add_keys` gives
    their keys. `before` are values that were set earlier, which have no source. `code_base` is the one whose defaults
    are asked for, None where none is. `inherits` says whether the file has a _BASE_.
    """

    def __init__(self, path: str | Path | None, opts: Sequence = (), before: Mapping[str, Any] | None = None):
        self.values: dict[str, Any] = dict(before or {})
        self.sources: dict[str, str] = {}
        self.waiting: list[tuple[str, Any, str]] = []  # (node, its value as written, source)
        self.keys, self.complete = dict(GENERAL), False
        self.nodes = _nodes(self.keys)
        said = list(chain(find_config(path))) if path is not None else []
        self.inherits = len(said) > 1
        said += [(COMMAND_LINE, _nest(key, self._typed_value(key, value))) for key, value in _pairs(opts)]
        self.ignored: dict[str, list[str]] = {}  # source -> its keys without effect
        self.code_base: str | None = None
        for place, (source, tree) in enumerate(said):
            tree, ignored = public.translated(tree, source)
            self.code_base = public.take_defaults(tree, source) or self.code_base
            self.ignored.setdefault(source, []).extend(ignored)
            said[place] = source, tree
        defaults = public.DEFAULTS.get(self.code_base, {})
        source = f"{public.DEFAULTS_KEY} {self.code_base}"
        self.trees = [(source, _nest(name, value)) for name, value in defaults.items()] + said
        for name in (TYPE, PLUGINS):
            for source, tree in self.trees:
                if (value := public.found(tree, name)) is not public.ABSENT:
                    self._set(name, value, source)

    def read(self) -> None:
        """Read all general keys. Raises UserError for one that is unknown or has a wrong value."""
        for source, tree in self.trees:
            self._say(tree, source)

    def add_keys(self, keys: Mapping[str, Key]) -> None:
        """Read the `waiting` nodes with the `keys` of all methods. Raises UserError for an unknown key."""
        self.keys, self.complete = {**self.keys, **keys}, True
        self.nodes = _nodes(self.keys)
        for node, tree, source in self.waiting:
            self._say({node: tree}, source)

    def source(self, name: str) -> str:
        """The file (or "command line") that set a key last; if none did, the one that set another key of its node."""
        node = name.split(".")[0]
        of_node = [source for key, source in self.sources.items() if key.split(".")[0] == node]
        return self.sources.get(name) or (of_node[-1] if of_node else "defaults")

    def _say(self, tree, source, prefix=""):
        for word, value in tree.items():
            name = prefix + _text(word)
            if "." in _text(word):
                if name in self.keys or name.split(".")[0] not in self.nodes:
                    raise UserError(f"{source}: {name}: keys have no dots in a file; write {_nested_text(name)}")
                raise UserError(self._unknown(name, source))
            if name in self.keys:
                self._set(name, value, source)
            elif name and name in self.nodes:
                value = parse(value) if isinstance(value, Typed) else value
                if not isinstance(value, Mapping):
                    below = ", ".join(self.nodes[name])
                    raise UserError(f"{source}: {name}: expected keys below it ({below}), found {shown(value)}")
                self._say(value, source, f"{name}.")
            elif prefix or self.complete or self._typed(name, value, source) != name:
                raise UserError(self._unknown(self._typed(name, value, source), source))
            else:
                self.waiting.append((name, value, source))

    def _set(self, name, value, source):
        key = self.keys[name]
        try:
            self.values[name] = key.read(value)
        except ValueError as error:
            raise UserError(f"{source}: {name}: {error}") from None
        self.sources.pop(name, None)  # the key that was set last must be the last entry
        self.sources[name] = source
        value = self.values[name]
        in_one_file = self.sources.get(key.sets) == source != COMMAND_LINE  # as in records: True there, False here
        if key.sets and (value not in (None, False) or (value is False and not in_one_file)):
            self._set(key.sets, value, source)
        for other in [other for other, key in OTHER_SPELLINGS.items() if key == name]:
            if self.values.get(other) not in (None, False, value):
                self.values[other] = self.keys[other].default  # what was said under it is overruled
        if name in (EA, TYPE):
            self._settle_ea(name, source)

    def _settle_ea(self, name, source):
        """Of "EA-KD" and DISTILLER.EA: False the one that was said last decides; in one file they contradict."""
        method, weighted = split_ea(str(self.values.get(TYPE, "")))
        if not weighted or self.values.get(EA) is not False:
            return
        other = EA if name == TYPE else TYPE
        if self.sources.get(other) == source != COMMAND_LINE:
            raise UserError(f"{source}: {TYPE}: {shown(self.values[TYPE])} contradicts {EA}: {shown(self.values[EA])}; "
                            "expected one of them")
        self.values[other] = method if name == EA else True

    def _typed_value(self, name, value):
        """A value of the command line; that of a node is read at once, since it may hold the method and plug-ins."""
        value = Typed(value) if isinstance(value, str) else value
        return parse(value) if isinstance(value, Typed) and name in self.nodes else value

    def _typed(self, name, value, source):
        """An unknown node as it was typed, with the key below it, if only its case is wrong; otherwise the node."""
        whole = next(iter(flatten({name: value})), name) if source == COMMAND_LINE else name
        return whole if whole.lower() in map(str.lower, self.keys) else name

    def _unknown(self, name, source):
        known = [*self.keys, *self.nodes, public.DEFAULTS_KEY, *([BASE_KEY] if source != COMMAND_LINE else [])]
        last = name.split(".")[-1]
        near = nearest(name, known) or [key for key in self.keys if key.split(".")[-1] == last][:3]
        node = name.rpartition(".")[0]
        hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(sorted(self.nodes.get(node, [])))}"
        return f"{source}: unknown key {name or repr(name)}; {hint}"


def stated(path: str | Path | None, overrides: Sequence = ()) -> dict[str, Any]:
    """The keys that a file, its bases and overrides set, by dotted name, as `load_cfg` would read them.

    General keys are checked and converted to their type; keys of methods are returned as they are written. Raises
    UserError for a file or a key that `load_cfg` would reject, as far as this is known without the methods.
    """
    reading = Reading(path, overrides)
    reading.read()
    said = dict(reading.values)
    for node, tree, _ in reading.waiting:
        said |= flatten({node: tree})
    if said.get(EA):
        said[TYPE] = ea_name(said.get(TYPE, BASE[TYPE]))
    return said


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat = {}
    for key, value in tree.items():
        name, value = prefix + _text(key), plain(value)
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def flatten_checked(tree: Mapping, source: str | Path) -> dict[str, Any]:
    """`flatten` for the config of a run: general keys must have the right type; unknown keys (of older versions) are
    allowed. Raises UserError that names `source` and the key, also for a config that was cut off."""
    flat = flatten(tree)
    for key, value in flat.items():
        if key in GENERAL:
            try:
                flat[key] = GENERAL[key].typed(value)
            except ValueError as error:
                raise UserError(f"{source}: {key}: {error}") from None
        elif key in KEYS:
            raise UserError(f"{source}: {key}: expected keys below it, found {shown(value)}")
        elif not _is_usual(value):
            raise UserError(f"{source}: {key}: expected numbers of a usual size, found {shown(value)}")
    missing = [key for key in RECORDED if key not in flat]
    if missing:
        raise UserError(f"{source}: {missing[0]} is missing; a run's config holds every key")
    return flat


def _is_usual(value):
    """Whether all integers in a value can be printed and compared with other numbers."""
    if isinstance(value, list | Mapping):
        return all(map(_is_usual, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, int) or value.bit_length() <= MOST_BITS


def as_overrides(opts: Sequence[str]) -> tuple[str, ...]:
    """ "KEY", value, ... or "KEY=value", ... as "KEY=value" alone. Raises UserError when a value is missing."""
    return tuple(f"{key}={value}" for key, value in _pairs(opts))


def _pairs(opts) -> Iterator[tuple[str, Any]]:
    words = iter(opts)
    for key in words:
        if isinstance(key, str) and "=" in key:
            key, value = key.split("=", 1)
        else:
            value = next(words, words)  # the iterator itself marks a missing value
        if value is words:
            raise UserError(f"{COMMAND_LINE}: {_text(key)}: a value must follow the key (KEY VALUE or KEY=VALUE)")
        if value == "=":
            raise UserError(f"{COMMAND_LINE}: {_text(key)}: found spaces around =; write KEY VALUE or KEY=VALUE")
        if isinstance(value, str) and value.startswith(("[", "(")) and value.endswith(","):
            raise UserError(f'{COMMAND_LINE}: {_text(key)}: a list is one word; quote it: {_text(key)} "{value} ..."')
        yield _text(key), value


def _nest(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _nested_text(name):
    """ "SOLVER.LR" as in a file: "SOLVER: {LR: ...}"."""
    *nodes, last = name.split(".")
    text = f"{last}: ..."
    for node in reversed(nodes):
        text = f"{node}: {{{text}}}"
    return text


def _nodes(keys):
    """{name of a node: names directly below it}; "" is the whole tree."""
    nodes: dict[str, list[str]] = {}
    for name in keys:
        parts = name.split(".")
        for depth in range(len(parts)):
            below = nodes.setdefault(".".join(parts[:depth]), [])
            if parts[depth] not in below:
                below.append(parts[depth])
    return nodes


def _text(word):
    return word if isinstance(word, str) and len(word) <= 200 else shown(word)
