"""Registries from public names, as in YAML files and tables of the paper, to objects. Imports only the errors."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from mdistiller.errors import UserError


class UnknownName(UserError, LookupError):
    """A name that is not in a registry."""


class Registry(dict):
    """Names to objects. Lookup ignores case and follows aliases; an unknown name raises `UnknownName`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.aliases = {}
        self.task_aliases = {}  # task -> {alias in lower case: name}, for that task only

    def register(self, name: str):
        """Decorator: register the object under `name`. Raises ValueError if another object has the name.

        A class or function of the same module and name replaces itself: it was edited, and its file or cell run again.
        """

        def add(obj):
            again = name in self.keys() and _origin(self[name]) == _origin(obj)
            if name in self and not again:
                raise ValueError(f"{self.kind} {name!r} is already registered, as {self[name].__qualname__}")
            self[name] = obj
            return obj

        return add

    def alias(self, alias: str, name: str, task: str | None = None) -> None:
        """Let `alias` mean `name` in lookups, or only in those of one `task`; iteration does not include aliases."""
        aliases = self.aliases if task is None else self.task_aliases.setdefault(task, {})
        aliases[alias.lower()] = name

    def canonical(self, name: str, task: str | None = None) -> str:
        """The registered spelling of `name`. Raises `UnknownName` with the nearest names.

        `task`, a TASK.TYPE, adds the aliases of that task, which take precedence over all other names.
        """
        keys = {key.lower(): key for key in self.keys()} | self.aliases | self.task_aliases.get(task, {})
        if str(name).lower() in keys:
            return keys[str(name).lower()]
        near = dict.fromkeys(keys[key] for key in difflib.get_close_matches(str(name).lower(), keys))
        known = list(near) or sorted(self)
        apart = "; " if any("," in one for one in known) else ", "
        raise UnknownName(f"unknown {self.kind} {name!r}; nearest: {apart.join(known)}")

    def __missing__(self, name):
        return super().__getitem__(self.canonical(name))

    def get(self, name, default=None):
        return self[name] if name in self else default

    def __contains__(self, name):
        return str(name).lower() in {key.lower() for key in self.keys()} | self.aliases.keys()


def _origin(obj):
    return obj.__module__, obj.__qualname__


def chosen(kind: str, entries: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The entries with these names in their own order, all of them without a name; looked up as in a `Registry`."""
    known = Registry(kind)
    known.update(entries)
    wanted = {known.canonical(name) for name in names} or entries.keys()
    return {name: entry for name, entry in entries.items() if name in wanted}


DISTILLERS = Registry("method")
EA_PREFIX = "EA-"


def split_ea(name: str) -> tuple[str, bool]:
    """A method's name without "EA-" (in either case), and whether it was there: "EA-KD" -> ("KD", True)."""
    weighted = name[: len(EA_PREFIX)].upper() == EA_PREFIX
    return (name[len(EA_PREFIX):], True) if weighted else (name, False)


def ea_name(name: str) -> str:
    """The name of a method's entropy-adaptive variant: "KD" and "EA-KD" -> "EA-KD"."""
    return EA_PREFIX + split_ea(name)[0]


def load_methods() -> Registry:
    """`DISTILLERS` after the import of every method file of this package; each registers its methods."""
    importlib.import_module("mdistiller.distillers")
    return DISTILLERS
