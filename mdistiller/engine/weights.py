"""The weights of a network within a checkpoint, whatever they are called there and whatever wraps their names."""

import logging

import torch
from torch import nn

log = logging.getLogger("mdistiller")
PREFERRED = ("model", "state_dict", "net", "network", "student")  # of several that fit; then as the file has them
AVERAGED = ("ema", "averag", "swa", "shadow")  # in the name of averaged weights, which are taken after all others
DEPTH = 3  # mappings within mappings that are looked into
MOST = 64  # mappings of one file that are tried
COUNTERS = ("n_averaged",)  # entries that wrappers put beside the network's own
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def fitting_state(content: dict, network: nn.Module, key: str | None = None) -> tuple[dict[str, torch.Tensor], list]:
    """The state dict for `network` in a checkpoint's content, with the network's own names, and the keys of all that
    fit, the one taken first.

    A checkpoint may be a state dict or hold several in mappings; `key` names the one to take, such as "state_dict_ema"
    or, for one within another, "ema.model". A whole run's holds the network below `student.`; a prefix that all names
    share (`module.`, `model.`, `_orig_mod.`) is taken off where the rest fits. Entries are compared strictly, names and
    shapes; only counters of batches may be absent. Raises ValueError that says what does not fit.
    """
    found = _mappings(content)
    if key is not None:
        if key not in found:
            raise ValueError(f"no weights under {key!r}; there are {', '.join(filter(None, found)) or 'none'}")
        found = {key: found[key]}
    own, fits, problems = network.state_dict(), {}, []
    for name in sorted(found, key=_rank):
        versions = _without_prefixes(found[name])
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
    """Log which weights were taken where a file has several that fit."""
    if len(fits) > 1:
        names = ", ".join(name or "the file itself" for name in fits)
        log.info(
            "%s holds several networks that fit (%s): took %s; DISTILLER.TEACHER_WEIGHTS and STUDENT_WEIGHTS choose",
            path, names, fits[0] or "the file itself",
        )


def mismatch(state: dict, own: dict[str, torch.Tensor]) -> str | None:
    """What does not fit a network whose state dict is `own`, in one line; None when everything does."""
    optional = {key for key in own if key.endswith("num_batches_tracked")}  # absent from very old files
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    other = [text for key in own.keys() & state.keys() if (text := _other(key, state[key], own[key]))]
    problems = [f"{len(missing)} keys missing ({missing[0]}, ...)"] if missing else []
    problems += [f"{len(unexpected)} unknown keys ({unexpected[0]}, ...)"] if unexpected else []
    problems += [min(other)] if other else []
    return "; ".join(problems) or None


def _mappings(content, prefix="", depth=0):
    """{dotted key: mapping} of every mapping that has a tensor by name, the content itself under ""."""
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
    """The mapping as it is, then without each prefix that all of its names share."""
    state = {key.removeprefix("module."): value for key, value in state.items() if key not in COUNTERS}
    if any(key.startswith("student.") for key in state):  # of a run that keeps its teacher or its method beside it
        state = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    versions = [state]
    while state:
        first, dot, _ = next(iter(state)).partition(".")
        if not dot or not all(key.startswith(f"{first}.") for key in state):
            break
        state = {key.removeprefix(f"{first}."): value for key, value in state.items()}
        versions.append(state)
    return versions


def _distance(state, own):
    """By how many entries a mapping differs from the network's."""
    optional = sum(key.endswith("num_batches_tracked") for key in own.keys() - state.keys())
    return len(own.keys() ^ state.keys()) - optional


def _other(key, value, own):
    shape, number = tuple(own.shape), own.dtype.is_floating_point
    if _kind(value) != shape:
        return f"{key} is {_kind(value)} in the file and {shape} in the network"
    if value.dtype not in (NUMBERS if number else NUMBERS | INTEGERS):
        return f"{key} is of {value.dtype} in the file and of {own.dtype} in the network"
    return None


def _kind(value):
    """Of a tensor of ordinary numbers, its shape; anything else is what it is called."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_meta or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        return f"a tensor on {value.device} of {value.dtype}, {value.layout}"
    return tuple(value.shape)
