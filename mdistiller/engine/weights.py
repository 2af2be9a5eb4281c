"""Find the weights of a network in a checkpoint, under any key and with any prefix of the parameter names."""

import logging
from typing import Any

import torch
from torch import nn

from mdistiller.errors import counted

log = logging.getLogger("mdistiller")
PREFERRED = ("model", "state_dict", "net", "network", "student")  # preferred keys, in this order, if several fit
AVERAGED = ("ema", "averag", "swa", "shadow")  # in keys of averaged weights, which have the lowest priority
DEPTH = 3  # levels of nested mappings that are searched
MOST = 64  # mappings of one file that are tried
COUNTERS = ("n_averaged",)  # entries that wrappers add to a network's state dict
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def fitting_state(content: dict, network: nn.Module, key: str | None = None) -> tuple[dict[str, torch.Tensor], list]:
    """The state dict in a checkpoint that fits `network`, and the keys of all that fit, the chosen one first.

    A checkpoint may be a state dict or contain several; `key` selects one, such as "state_dict_ema" or, for a nested
    one, "ema.model". In the checkpoint of a whole run the network's names begin with `student.`. A prefix of all names
    (`module.`, `model.`, `_orig_mod.`) is removed if the remaining names fit, and one of all names of the network
    (`model.` of a detector, in which torchvision's is wrapped) is added. Names and shapes are compared strictly; only
    `num_batches_tracked` may be missing. Raises ValueError, saying which entries differ, when none fits.
    """
    found = _mappings(content)
    if key is not None:
        if key not in found:
            raise ValueError(f"no weights under {key!r}; there are {', '.join(filter(None, found)) or 'none'}")
        found = {key: found[key]}
    own, fits, problems = network.state_dict(), {}, []
    for name in sorted(found, key=_rank):
        versions = _without_prefixes(found[name])
        versions += [{f"{prefix}{key}": value for key, value in version.items()}
                     for version in versions if (prefix := _common_prefix(own))]
        state = next((state for state in versions if not mismatch(state, own)), None)
        if state is not None:
            fits[name] = state
        elif versions:
            problems += [(_distance(state, own), mismatch(state, own)) for state in versions]
    if not fits:
        raise ValueError(min(problems, key=lambda pair: pair[0])[1] if problems else mismatch({}, own))
    taken = next(iter(fits))
    return {name: fits[taken].get(name, own[name]) for name in own}, list(fits)


def say_choice(path, fits: list[str]) -> None:
    """Log which weights were chosen if a file contains several that fit."""
    if len(fits) > 1:
        names = ", ".join(name or "the file itself" for name in fits)
        log.info(
            "%s holds several state dicts that fit (%s); using %s. DISTILLER.TEACHER_WEIGHTS or STUDENT_WEIGHTS "
            "selects another",
            path, names, fits[0] or "the file itself",
        )


def mismatch(state: dict, own: dict[str, torch.Tensor]) -> str | None:
    """One line that says how `state` differs from a network's state dict `own`; None when it fits."""
    optional = {key for key in own if key.endswith("num_batches_tracked")}  # absent from very old files
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    other = _others(state, own)
    problems = [f"{counted(len(missing), 'key')} missing ({missing[0]}, ...)"] if missing else []
    problems += [f"{counted(len(unexpected), 'unknown key')} ({unexpected[0]}, ...)"] if unexpected else []
    problems += [min(other)] if other else []
    return "; ".join(problems) or None


def load_exactly(module: nn.Module, state: dict) -> None:
    """Load the state of such a module as it was saved. Raises ValueError for an entry of another shape or type.

    PyTorch itself would convert a weight of booleans or of uint16 without a word. Names that do not fit raise its
    RuntimeError, after the hooks that rename the entries of older versions.
    """
    if other := _others(state, module.state_dict()):
        raise ValueError(min(other))
    module.load_state_dict(state)


def _others(state, own):
    return [text for key in own.keys() & state.keys() if (text := misfit(key, state[key], own[key]))]


def _mappings(content, prefix="", depth=0):
    """{dotted key: mapping} of every nested mapping that contains a tensor; the key of the content itself is ""."""
    found = {}
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        found[prefix] = {str(key): value for key, value in content.items()}
    if depth < DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, dict) and len(found) < MOST:
                found |= _mappings(value, f"{prefix}.{key}" if prefix else key, depth + 1)
    return found


def _rank(name):
    averaged = any(word in name.lower() for word in AVERAGED)
    last = name.split(".")[-1]
    return averaged, PREFERRED.index(last) if last in PREFERRED else len(PREFERRED)


def _without_prefixes(state):
    """The mapping, then its part below `student.`, then the same without each common prefix of its names."""
    state = {key.removeprefix("module."): value for key, value in state.items() if key not in COUNTERS}
    versions = [state]
    part = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    if part:  # a whole run, with modules of its method; or a network that has a part of this name itself
        versions.append(state := part)
    while prefix := _common_prefix(state):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        versions.append(state)
    return versions


def _common_prefix(state):
    """The first part of all names, such as "model."; "" if there is none."""
    first, dot, _ = next(iter(state), "").partition(".")
    return f"{first}." if dot and all(key.startswith(f"{first}.") for key in state) else ""


def _distance(state, own):
    """The number of names that are in only one of the two state dicts."""
    optional = sum(key.endswith("num_batches_tracked") for key in own.keys() - state.keys())
    return len(own.keys() ^ state.keys()) - optional


def misfit(key: str, value: Any, own: torch.Tensor) -> str | None:
    """One line that says how an entry of a file differs from the tensor `own` that it is to replace; None if it fits.
    """
    shape, number = tuple(own.shape), own.dtype.is_floating_point
    if _kind(value) != shape:
        return f"{key} is {_kind(value)} in the file and {shape} in the network"
    if value.dtype not in {own.dtype, *NUMBERS, *(() if number else INTEGERS)}:
        return f"{key} is of {value.dtype} in the file and of {own.dtype} in the network"
    return None


def _kind(value):
    """The shape of a dense tensor; for anything else a description."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_meta or value.layout != torch.strided:
        return f"a tensor on {value.device} of {value.dtype}, {value.layout}"
    return tuple(value.shape)
