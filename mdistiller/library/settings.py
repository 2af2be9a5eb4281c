"""Keywords of `distill` as a configuration: a method's settings by their plain names, in upper or lower case."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from mdistiller.config import load_cfg
from mdistiller.config.key import flat_keys
from mdistiller.config.keys import EA
from mdistiller.config.stated import COMMAND_LINE
from mdistiller.config.words import nearest
from mdistiller.distillers import DISTILLERS
from mdistiller.errors import UserError

SOURCE = "distill"  # origin of a setting, for messages
GENERAL = {  # settings that belong to no method
    "LS": "DISTILLER.LS",
    "LABEL_SMOOTHING": "SOLVER.LABEL_SMOOTHING",
    "EPOCHS": "SOLVER.EPOCHS",
    "BATCH_SIZE": "SOLVER.BATCH_SIZE",
    **{f"EA_{name}": f"EA.{name}" for name in EA},
}
OF_TEXTS = {f"LM_{name}": f"LM.{name}" for name in ("LOSS_CHUNK", "REDUCTION")}  # only of language models


def canonical_method(name: str, task: str) -> str:
    """The registered name of a method, "dkd" or "EA-DKD". Raises UserError that names the nearest ones."""
    try:
        return DISTILLERS.canonical(name, task)
    except UserError as error:
        raise UserError(f"{SOURCE}: {error}") from None


def settings(method: str, task: str, keywords: Mapping[str, Any], arguments: Iterable[str] = ()) -> CfgNode:
    """The configuration of a method under `keywords`.

    A key `LOSS.CE_WEIGHT` of the method's node is the keyword LOSS_CE_WEIGHT or CE_WEIGHT. Keys of other nodes that the
    method reads are KD_TEMPERATURE or, where its own node has no such key, TEMPERATURE. Raises UserError for a wrong
    value, for a key that is given twice, and for an unknown keyword; the message then names the nearest known ones and
    the nearest of the other `arguments` of `distill`.
    """
    known = known_keywords(method) | (OF_TEXTS if task == "language" else {})
    given: dict[str, str] = {}  # key -> keyword
    options: list[Any] = ["TASK.TYPE", task, "DISTILLER.TYPE", method]
    for keyword, value in _flat(keywords):
        key = known.get(keyword.upper())
        if key is None:
            names = {argument.upper(): argument for argument in arguments} | {name: name for name in known}
            near = [names[name] for name in nearest(keyword.upper(), names)]
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise UserError(f"{SOURCE}: {keyword} is no setting of {method}; {hint}")
        if key in given:
            raise UserError(f"{SOURCE}: {key} is given twice: as {given[key]} and as {keyword}")
        given[key] = keyword
        options += [key, value.item() if getattr(value, "ndim", None) == 0 else value]  # numbers of NumPy and PyTorch
    return load(None, options, SOURCE)


def load(path: str | Path | None, overrides: Sequence, source: str) -> CfgNode:
    """`load_cfg`, whose errors name `source` as the origin of the overrides."""
    try:
        return load_cfg(path, overrides)
    except UserError as error:
        raise UserError(str(error).replace(f"{COMMAND_LINE}:", f"{source}:", 1)) from error.__cause__


def known_keywords(method: str) -> dict[str, str]:
    """Keyword in capitals -> key of the configuration, for a registered method."""
    cls, found = DISTILLERS[method], {}
    nodes = {other.config_key: other.defaults for other in DISTILLERS.values() if other.defaults}
    for node in (cls.config_key, *cls.reads):
        keys = list(flat_keys(nodes.get(node, {})))
        lasts = [key.split(".")[-1] for key in keys]
        for key, last in zip(keys, lasts, strict=True):
            names = [key.replace(".", "_"), *([last] if lasts.count(last) == 1 else [])]
            if node != cls.config_key:
                names = [f"{node}_{name}" for name in names] + names
            for name in names:
                found.setdefault(name.upper(), f"{node}.{key}")
    return GENERAL | found


def _flat(keywords, prefix=""):
    for name, value in keywords.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", value
