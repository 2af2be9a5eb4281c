"""Builds the complete, checked configuration tree from a file and overrides."""

import contextlib
import copy
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

import mdistiller.config.public as public
from mdistiller.config.former import unnamed
from mdistiller.config.key import Key, flat_keys
from mdistiller.config.keys import GENERAL, KEYS, OTHER_SPELLINGS
from mdistiller.config.stated import COMMAND_LINE, PLUGINS, TYPE, Reading, flatten
from mdistiller.errors import UserError
from mdistiller.plugins import import_file, without_folders
from mdistiller.registry import ea_name, load_methods, split_ea

AUGMENTATION = "DATASET.AUGMENTATION"
SOURCES = "sources"  # where a tree of `load_cfg` keeps who has set its keys; no key of it
UNTRUSTED = "{} is Python code, which is not run because a record names it; if you trust it, add {}"
KEY = re.compile(r"[A-Z][A-Za-z_]*(\.\w+)*")


class Tree(CfgNode):
    """A whole configuration, in which YACS's ways of merging read files and overrides as `load_cfg` does."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Set what the file and the files that it inherits from say. Raises UserError and then changes nothing."""
        self._merge(cfg_filename, ())

    def merge_from_list(self, cfg_list: Sequence) -> None:
        """Set the overrides "KEY", value, .... Raises UserError and then changes nothing."""
        self._merge(None, cfg_list)

    def merge_from_other_cfg(self, cfg_other: Mapping) -> None:
        """Set what another tree, or a part of one, holds. Raises UserError and then changes nothing."""
        said = flatten(cfg_other)
        if split_ea(str(said.get("DISTILLER.TYPE", "")))[1]:
            said["DISTILLER.EA"] = True  # in a tree whose attributes were set, False may be the default alone
        self._merge(None, [word for pair in said.items() for word in pair])

    def _merge(self, path, opts):
        known = {**GENERAL, **method_keys()}  # a default was not said, and must not speak against what is said now
        said = {name: value for name, value in flatten(self).items() if name in known and value != known[name].default}
        reading = _read(path, opts, before=said)
        _settled(reading)  # its checks; names are resolved when the tree is used, because more may be merged until then
        _fill(self, _all_values(reading))
        self.__dict__.setdefault(SOURCES, {}).update(reading.sources)


def method_keys() -> dict[str, Key]:
    """The keys of every registered method's own node, by dotted name."""
    nodes = {method.config_key: method.defaults for method in load_methods().values() if method.defaults}
    return flat_keys(nodes)


def get_cfg() -> CfgNode:
    """A fresh tree of all defaults, with one node per registered method (from its class's `defaults`)."""
    return _tree({name: key.default for name, key in {**GENERAL, **method_keys()}.items()})


def load_cfg(
    path: str | Path | None = None, opts: Sequence = (), trusted: Sequence[str] | None = None
) -> CfgNode:
    """The defaults, changed by the file and the files that it inherits from, then by the overrides.

    Overrides are "KEY", value, ... or "KEY=value", .... Values are converted to the type of their default (an int or
    the text "1e-4" for a float). Raises UserError, in one line that names the file and the key, for an unknown key, a
    wrong type or a value out of range.

    For a file that is the record of a run, `trusted` are the plug-ins that it may name besides those that the
    overrides name, and keys that came later have the value that means what the run did (`former.unnamed`). With None,
    whatever the file names is imported.
    """
    reading = _read(path, opts, trusted)
    if trusted is not None:
        reading.values = unnamed(reading.values) | reading.values
    cfg = _settled(reading)
    cfg.__dict__[SOURCES] = dict(reading.sources)
    return cfg


def as_loaded(cfg: CfgNode) -> CfgNode:
    """The tree as `load_cfg` would have read it: values may have been set as attributes. A copy if that changes any.

    They are converted to the types of their keys. If a key was set only under its other name, it gets that value.
    Raises UserError for a value that its key cannot have.
    """
    said, read, known = flatten(cfg), {}, {**GENERAL, **method_keys()}
    for name in said.keys() & known.keys():
        try:
            read[name] = known[name].read(said[name])
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    changed = {name: value for name, value in read.items() if (type(value), value) != (type(said[name]), said[name])}
    changed |= {key: said[name] for name, key in OTHER_SPELLINGS.items()
                if said[name] not in (None, False) and said[key] == GENERAL[key].default != said[name]}
    return _fill(copy.deepcopy(cfg), changed) if changed else cfg


@contextlib.contextmanager
def errors_name_files(cfg: CfgNode) -> Iterator[None]:
    """A context that uses a configuration: a UserError that begins with a key then first names the file that set it."""
    try:
        yield
    except UserError as error:
        key = KEY.match(str(error))
        source = cfg.__dict__.get(SOURCES, {}).get(key[0]) if key else None
        if source is None:
            raise
        raise type(error)(f"{source}: {error}") from error


def dump_cfg(cfg: CfgNode) -> str:
    """The tree as YAML text, from which `load_cfg` makes an equal tree."""
    return yaml.safe_dump(_plain(cfg), sort_keys=True)


def active_cfg(cfg: CfgNode) -> CfgNode:
    """The tree without the nodes of methods, except those that the method DISTILLER.TYPE reads."""
    return OwnNodes(cfg, load_methods()[cfg.DISTILLER.TYPE])


class OwnNodes(CfgNode):
    """The nodes that a method may read: copies of the general nodes, of its own, and of those in its `reads`.

    Reading the node of another method raises UserError.
    """

    def __init__(self, cfg: CfgNode, method: type):
        others = {other.config_key for other in load_methods().values()} - KEYS.keys()
        others -= {method.config_key, *method.reads}
        super().__init__()
        self.update((key, copy.deepcopy(value)) for key, value in cfg.items() if key not in others)
        self.__dict__.update({"others": others, "method": method.method, SOURCES: cfg.__dict__.get(SOURCES, {})})

    def __missing__(self, key):
        if key in self.__dict__.get("others", ()):
            method = self.__dict__["method"]
            raise UserError(f"{method} reads the config node {key} without declaring it: add {key!r} to its `reads`")
        raise KeyError(key)

    def __getattr__(self, name):
        if name in self.__dict__.get("others", ()):
            return self[name]
        return super().__getattr__(name)


def is_stated(cfg: CfgNode, key: str) -> bool:
    """Whether a file or an override has set the key; in a tree of `get_cfg()`, whether it has another value now."""
    return key in cfg.__dict__.get(SOURCES, {}) or flatten(cfg)[key] != GENERAL[key].default


def refuse_own_networks(cfg: CfgNode) -> None:
    """Raise UserError if a record, and not the command line, names a network in a Python file."""
    for key in ("DISTILLER.STUDENT", "DISTILLER.TEACHER"):
        network, source = cfg.DISTILLER[key.split(".")[1]], cfg.__dict__[SOURCES].get(key)
        if source != COMMAND_LINE and ".py:" in network:
            raise UserError(f"{source}: {key}: {UNTRUSTED.format(network, f'{key} {network}')}")


def _read(path, opts, trusted=None, before=None):
    """All that a file and overrides say, by the keys of all methods, those of plug-ins among them."""
    reading = Reading(path, opts, before)
    _import_plugins(reading, trusted)
    _check_method(reading)
    reading.read()
    reading.add_keys(method_keys())
    for source, ignored in reading.ignored.items():
        if ignored:
            public.warn(f"{source}: without effect here and left out: {', '.join(dict.fromkeys(ignored))}")
    return reading


def _all_values(reading):
    return {name: reading.values.get(name, key.default) for name, key in reading.keys.items()}


def _settled(reading):
    cfg = _tree(_all_values(reading))
    _settle(cfg, reading)
    _warn_of_defaults(cfg, reading)
    return cfg


def _import_plugins(reading, trusted):
    """Import the files and modules of EXPERIMENT.PLUGINS, so that the nodes of their methods are known."""
    source = reading.source(PLUGINS)
    elsewhere = {without_folders(name): name for name in trusted or ()}  # the file of a record may have been moved
    elsewhere |= {name: name for name in trusted or ()}
    for plugin in reading.values.get(PLUGINS, ()):
        if trusted is not None and source != COMMAND_LINE:
            name = plugin if plugin in elsewhere else without_folders(plugin)
            if name not in elsewhere:
                raise UserError(f"{source}: {PLUGINS}: {UNTRUSTED.format(plugin, f'{PLUGINS} [{plugin}]')}")
            plugin = elsewhere[name]
        try:
            import_file(plugin) if plugin.endswith(".py") else importlib.import_module(plugin)
        except UserError as error:
            raise UserError(f"{source}: {PLUGINS}: {error}") from None
        except (Exception, SystemExit) as error:  # from the module's code, or from an invalid module name
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: {PLUGINS}: {plugin!r}: {type(error).__name__}: {reason}") from error


def _check_method(reading):
    """Refuse an unknown method by its name, before its keys are called unknown."""
    name, place, methods = reading.values.get(TYPE, ""), f"{reading.source(TYPE)}: {TYPE}", load_methods()
    if not name or name in methods or any(name.lower() in aliases for aliases in methods.task_aliases.values()):
        return
    if reason := public.not_here(name):
        raise UserError(f"{place}: {name}: {reason}")
    try:
        methods.canonical(name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _warn_of_defaults(cfg, reading):
    """What a file of another code base leaves out may mean something else there, which no key of it can tell."""
    method = load_methods()[cfg.DISTILLER.TYPE]
    said = any(name.startswith("KD.") for name in reading.sources)
    stands = cfg.EXPERIMENT.LOGIT_STAND and "EXPERIMENT.LOGIT_STAND" in reading.sources
    if stands and not said and "KD" in (method.config_key, *method.reads):
        public.warn(f"{reading.source('EXPERIMENT.LOGIT_STAND')}: KD.* are left out and mean mdistiller's defaults; "
                    f"{public.DEFAULTS_KEY} ls gives those of the code base that EXPERIMENT.LOGIT_STAND comes from")
    # All files of these code bases state a tag beside the method, and inherit nothing.
    named = reading.sources.get(TYPE)
    tagged = not reading.inherits and reading.sources.get("EXPERIMENT.TAG", "") == named != COMMAND_LINE
    left_out = public.LEFT_OUT.get(split_ea(str(reading.values.get(TYPE, "")))[0].upper(), {})
    # The code base whose defaults are asked for, or that of EA-KD, which has mdistiller's.
    known = {"KD"} if reading.code_base or "DISTILLER.EA" in reading.sources else set()
    for key, meaning in left_out.items() if tagged and not stands else ():
        if key not in known and not any(f"{name}.".startswith(f"{key}.") for name in reading.sources):
            public.warn(f"{reading.source(TYPE)}: {key} is left out and {meaning}")
    length = {"SOLVER.EPOCHS"} if "SOLVER.MAX_ITER" in reading.sources else set()  # which it says in updates
    missing = [key for key in public.STATED if key not in {*reading.sources} | length]
    if tagged and missing and not reading.code_base:
        public.warn(f"{reading.source(TYPE)}: {', '.join(missing)}: left out, so mdistiller's defaults hold; some of "
                    "its forks have others")
    source = reading.sources.get("DATASET.TYPE", COMMAND_LINE)
    if cfg.DATASET.TYPE.lower() == "tiny_imagenet" and source != COMMAND_LINE and AUGMENTATION not in reading.sources:
        public.warn(f"{source}: {AUGMENTATION} is left out and means {cfg.DATASET.AUGMENTATION}; mdistiller's own "
                    "Tiny-ImageNet files mean rotate_flip")


def _tree(values):
    return _fill(Tree(), values)


def _fill(tree, values):
    """The tree, with copies of values by dotted name set in it, whether it is frozen or not."""
    for name, value in values.items():
        *nodes, last = name.split(".")
        node = tree
        for word in nodes:
            node = node.setdefault(word, CfgNode())
        node[last] = copy.deepcopy(value)
    return tree


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _settle(cfg, reading):
    """Resolve the name of the method, then check keys that depend on each other."""

    def fail(name, problem):
        raise UserError(f"{reading.source(name)}: {name}: {problem}")

    methods = load_methods()
    try:
        name = methods.canonical(cfg.DISTILLER.TYPE, cfg.TASK.TYPE)
    except UserError as error:
        fail("DISTILLER.TYPE", str(error))
    cfg.DISTILLER.TYPE = ea_name(name) if cfg.DISTILLER.EA else name
    cfg.DISTILLER.EA = split_ea(cfg.DISTILLER.TYPE)[1]
    for stages, what in (("LR_DECAY_STAGES", "epochs"), ("STEPS", "updates")):
        if sorted(cfg.SOLVER[stages]) != list(cfg.SOLVER[stages]):
            fail(f"SOLVER.{stages}", f"expected {what} in ascending order; found {list(cfg.SOLVER[stages])}")
    if len(cfg.SOLVER.BETAS) != 2:
        fail("SOLVER.BETAS", f"expected two numbers; found {list(cfg.SOLVER.BETAS)}")
    for node, method in {method.config_key: method for method in methods.values() if method.defaults}.items():
        problem = method.check(cfg[node])
        if problem:
            fail(f"{node}.{problem[0]}", problem[1])
