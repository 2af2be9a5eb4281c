"""What a file and overrides say, without the defaults of methods and so without torch: for plans and reports."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdistiller.config.defaults import DEFAULTS, OTHER_SPELLINGS
from mdistiller.config.files import chain
from mdistiller.config.loading import EA_PREFIX, _coerce, _pairs, _parse
from mdistiller.errors import UserError


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


BASE = flatten(DEFAULTS)  # the default of every key that is not a method's own


def as_overrides(opts: Sequence[str]) -> tuple[str, ...]:
    """ "KEY", value, ... or "KEY=value", ... as "KEY=value" alone. Raises UserError when a value is missing."""
    return tuple(f"{key}={value}" for key, value in _pairs(opts))


def stated(path: str | Path | None, overrides: Sequence = ()) -> dict[str, Any]:
    """The keys that a file, its bases and overrides set, by dotted name, as `load_cfg` would read them.

    Keys that are no method's are checked and brought to their type; those of methods stand as they are written.
    Raises UserError for a file or a key that `load_cfg` would refuse, as far as that is known without the methods.
    """
    said: dict[str, Any] = {}
    for name, tree in chain(path) if path is not None else ():
        for key, value in flatten(tree).items():
            _say(said, key, value, name)
    for key, value in _pairs(overrides):
        if isinstance(value, str) and not isinstance(BASE.get(key), str):
            value = _parse(value)
        for below, leaf in flatten({key: value}).items():
            _say(said, below, leaf, "command line")
    method = said.get("DISTILLER.TYPE", BASE["DISTILLER.TYPE"])
    if said.get("DISTILLER.EA") and not method.upper().startswith(EA_PREFIX):
        said["DISTILLER.TYPE"] = EA_PREFIX + method
    return said


def flatten_checked(tree: Mapping, source: str | Path) -> dict[str, Any]:
    """`flatten` of a run's config: keys that are no method's must hold their type, and keys that are not known any more
    may stand there. Raises UserError that names `source` and the key."""
    flat = flatten(tree)
    for key, value in flat.items():
        if key in BASE:
            flat[key] = _coerce(value, BASE[key], key, source)
        elif key in DEFAULTS:
            raise UserError(f"{source}: {key}: expected keys below it, found {value!r}")
    return flat


def _say(said, key, value, source):
    if key not in BASE:
        if key.split(".")[0] in DEFAULTS:
            near = difflib.get_close_matches(key, BASE, n=3)
            raise UserError(f"{source}: {key} is no key" + (f"; nearest: {', '.join(near)}" if near else ""))
        said[key] = value
        return
    before, said[key] = said.get(key), _coerce(value, BASE[key], key, source)
    if key in OTHER_SPELLINGS and (said[key] not in (None, False) or before is True):
        _say(said, OTHER_SPELLINGS[key], said[key], source)
