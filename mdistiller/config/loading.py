"""From a file and overrides to a complete, checked configuration tree."""

import copy
import difflib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from mdistiller.config.defaults import CHOICES, DEFAULTS, METHOD_RANGES, OPTIONAL, OTHER_SPELLINGS, RANGES
from mdistiller.config.files import chain
from mdistiller.errors import UserError
from mdistiller.plugins import import_file
from mdistiller.registry import load_methods

EA_PREFIX = "EA-"
PLUGINS = "EXPERIMENT.PLUGINS"


def get_cfg() -> CfgNode:
    """A fresh tree of all defaults, with one node per registered method (from its class's `defaults`)."""
    tree = copy.deepcopy(DEFAULTS)
    for method in load_methods().values():
        if method.defaults:
            tree.setdefault(method.config_key, {}).update(copy.deepcopy(dict(method.defaults)))
    return CfgNode(tree)


def load_cfg(path: str | Path | None = None, opts: Sequence = ()) -> CfgNode:
    """Defaults, then the file with everything it inherits, then overrides ("KEY", value, ... or "KEY=value", ...).

    Values are brought to the type of their default (an int where a float is expected, "1e-4" for a float). Raises
    UserError, in one line that names the file and key, for anything unknown, of a wrong type or out of range.
    """
    files, pairs = chain(path) if path is not None else [], _pairs(opts)
    _import_plugins(files, pairs)
    draft = _Draft()
    for name, tree in files:
        draft.merge(tree, name)
    for key, value in pairs:
        if isinstance(value, str) and not isinstance(draft.defaults.get(key), str):  # "007" is a name where names stand
            value = _parse(value)
        draft.merge(_nest(key, value), "command line")
    _settle(draft.cfg, draft.sources)
    return draft.cfg


def dump_cfg(cfg: CfgNode) -> str:
    """The tree as YAML text that `load_cfg` reads back to an equal tree."""
    return yaml.safe_dump(_plain(cfg), sort_keys=True)


def active_cfg(cfg: CfgNode) -> CfgNode:
    """The tree without the nodes of methods that DISTILLER.TYPE neither is nor reads."""
    methods = load_methods()
    chosen = methods[cfg.DISTILLER.TYPE]
    idle = {method.config_key for method in methods.values()} - {chosen.config_key, *chosen.reads} - DEFAULTS.keys()
    return CfgNode({key: copy.deepcopy(value) for key, value in cfg.items() if key not in idle})


def keys_of(cfg: CfgNode, prefix: str = "") -> list[str]:
    """All dotted leaf names."""
    names = []
    for key, value in cfg.items():
        names += keys_of(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return names


def _import_plugins(files, pairs):
    """Import what EXPERIMENT.PLUGINS names: the methods registered there have nodes of their own in the tree."""
    node, leaf = PLUGINS.split(".")
    plugins, source = [], ""
    typed = [(key, _parse(value) if isinstance(value, str) else value) for key, value in pairs]
    for name, tree in [*files, *(("command line", _nest(*pair)) for pair in typed)]:
        if isinstance(tree.get(node), dict) and leaf in tree[node]:
            plugins, source = tree[node][leaf], name
    for plugin in _coerce(plugins, [""], PLUGINS, source):
        try:
            import_file(plugin) if plugin.endswith(".py") else importlib.import_module(plugin)
        except UserError as error:
            raise UserError(f"{source}: {PLUGINS}: {error}") from None
        except (Exception, SystemExit) as error:  # of the module's own code, and of names that no module can have
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: {PLUGINS}: {plugin!r}: {type(error).__name__}: {reason}") from error


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _pairs(opts):
    opts, pairs = list(opts), []
    while opts:
        key = opts.pop(0)
        if isinstance(key, str) and "=" in key:
            key, value = key.split("=", 1)
        elif opts:
            value = opts.pop(0)
        else:
            raise UserError(f"command line: {key}: a value must follow the key (KEY VALUE or KEY=VALUE)")
        pairs.append((str(key), value))
    return pairs


def _parse(text):
    try:
        return yaml.safe_load(text) if text.strip() else text
    except Exception:  # of many kinds; a text that is no YAML, such as a path with a colon, stands for itself
        return text


def _nest(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


class _Draft:
    """A tree in the making: the defaults it starts from, by dotted name, and which source set a key last."""

    def __init__(self):
        self.cfg, self.sources = get_cfg(), {}
        self.defaults = {name: _lookup(self.cfg, name) for name in keys_of(self.cfg)}

    def merge(self, tree, source, prefix=""):
        node = _lookup(self.cfg, prefix.removesuffix(".")) if prefix else self.cfg
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if key not in node:
                raise UserError(f"{source}: {name} is no key; {self._hint(name, key, node)}")
            if name in self.defaults:
                before, node[key] = node[key], _coerce(value, self.defaults[name], name, source)
                self.sources[name] = source
                if name in OTHER_SPELLINGS and (node[key] not in (None, False) or before is True):
                    self.merge(_nest(OTHER_SPELLINGS[name], node[key]), source)
            elif isinstance(value, dict):
                self.merge(value, source, f"{name}.")
            else:
                raise UserError(f"{source}: {name}: expected keys below it ({', '.join(node[key])}), found {value!r}")

    def _hint(self, name, key, node):
        near = difflib.get_close_matches(name, self.defaults, n=3) or [
            known for known in self.defaults if known.split(".")[-1] == str(key).split(".")[-1]
        ][:3]
        return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(sorted(node))}"


def _lookup(cfg, name):
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def _coerce(value, default, name, source):
    kinds = OPTIONAL.get(name)
    if kinds:
        if value in (None, "None"):  # as Python writes it; YAML says null
            return None
        for kind in kinds:
            try:
                return _coerce(value, kind(), "", source)
            except UserError:
                continue
        raise UserError(f"{source}: {name}: expected {' or '.join(kind.__name__ for kind in kinds)}, found {value!r}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        if isinstance(value, bool) or (number and value in (0, 1)):
            return bool(value)
    elif isinstance(default, int):
        if number and _finite(value) and value == int(value):
            return int(value)
    elif isinstance(default, float):
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a text
            try:
                value, number = float(value), True
            except ValueError:
                pass
        if number and _finite(value):
            return float(value)
    elif isinstance(default, str):
        if isinstance(value, str) or number:
            return _text(str(value), name, source)
    elif isinstance(default, list | tuple):
        if isinstance(value, str) and value.startswith("(") and value.endswith(")"):  # a tuple, as yacs reads it
            value = _parse(f"[{value[1:-1]}]")
        if isinstance(value, list | tuple):
            return type(default)(_coerce(item, default[0], name, source) if default else item for item in value)
    expected = "list" if isinstance(default, list | tuple) else type(default).__name__
    raise UserError(f"{source}: {name}: expected {expected}, found {value!r}")


def _text(value, name, source):
    """The text, if a file can hold it and be named by it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source}: {name}: expected UTF-8, found {value!r}") from None
    if "\0" in value:
        raise UserError(f"{source}: {name}: expected a text without NUL, found {value!r}")
    return value


def _finite(number):
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond the floats
        return False


def _settle(cfg, sources):
    """Resolve the name of the method, then check every value."""

    def fail(name, problem):
        raise UserError(f"{sources.get(name, 'defaults')}: {name}: {problem}")

    methods = load_methods()
    try:
        name = methods.canonical(cfg.DISTILLER.TYPE)
    except UserError as error:
        fail("DISTILLER.TYPE", str(error))
    if cfg.DISTILLER.EA and not name.startswith(EA_PREFIX):
        name = EA_PREFIX + name
    cfg.DISTILLER.TYPE, cfg.DISTILLER.EA = name, name.startswith(EA_PREFIX)
    cfg.EXPERIMENT.LOGIT_STAND &= cfg.DISTILLER.LS  # switched off under its other name
    _check_values(cfg, fail, {method.config_key: method for method in methods.values() if method.defaults})


def _check_values(cfg, fail, methods):
    for name in keys_of(cfg):
        value = _lookup(cfg, name)
        if name in CHOICES and isinstance(value, str) and value not in CHOICES[name]:
            near = difflib.get_close_matches(value, CHOICES[name], n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            fail(name, f"expected one of {', '.join(CHOICES[name])}; found {value!r}{hint}")
        node, last = name.split(".")[0], name.split(".")[-1]
        bounds = RANGES.get(name) or (METHOD_RANGES.get(last) if node in methods else None)
        if bounds and isinstance(value, int | float):
            least, greatest, closed = bounds
            if value < least or (value == least and not closed) or (greatest is not None and value > greatest):
                low = f"at least {least}" if closed else f"greater than {least}"
                high = "" if greatest is None else f" and at most {greatest}"
                fail(name, f"expected a number {low}{high}; found {value}")
    stages = cfg.SOLVER.LR_DECAY_STAGES
    if sorted(stages) != list(stages):
        fail("SOLVER.LR_DECAY_STAGES", f"expected epochs in rising order; found {list(stages)}")
    for node, method in methods.items():
        problem = method.check(cfg[node])
        if problem:
            fail(f"{node}.{problem[0]}", problem[1])
