"""The page about all registered methods, generated from their classes and from distillers built with real networks."""

import re
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.errors import UserError
from mdistiller.models import build_model

NUM_CLASSES, NUM_TRAIN, BATCH = 100, 400, 4
DATA = {"name": "cifar100", "num_classes": NUM_CLASSES, "num_train": NUM_TRAIN, "image_size": 32,
        "targets": torch.arange(NUM_TRAIN) % NUM_CLASSES}
HEADER = """\
# Methods

Written by `python tools/methods.py`, from the registry. Each method also exists as `EA-<name>`, the same class with
each sample's loss multiplied by its weight. Sources and departures from them: each class's docstring and
[fidelity.md](fidelity.md).

- **reads**: what of the networks' outputs the losses read. What reads logits runs on any pair of networks.
- **EA weighs**: the losses, as the log names them, that the EA variant multiplies by the sample's weight. Cross-entropy
  is never weighted; neither are **batch terms**, which have no form for one sample.
- **trained with the student**: the method's own modules and their parameters for {teacher} -> {student}.
- **teacher stored**: whether the teacher's logits may come from `TEACHER_CACHE` instead of a forward pass.
"""
COLUMNS = ("method", "paper", "reads", "EA weighs", "batch terms", "trained with the student", "views", "teacher mode",
           "teacher stored")
REFUSALS = """
## Pairs of the paper's Table 2 that a method cannot run on

Found by building every method on every pair, with its default settings.

"""


def methods_page(pairs: Mapping[str, tuple[str, str]]) -> str:
    """docs/methods.md for pairs of networks, name -> (teacher, student); modules are measured on the first pair."""
    names = [name for name in DISTILLERS if not DISTILLERS[name].weighted]
    teacher, student = next(iter(pairs.values()))
    rows, refusals = [], []
    for index, (pair, networks) in enumerate(pairs.items()):
        built = _networks(*networks)
        for name in sorted(names):
            try:
                distiller = _distiller(name, networks, built, index > 0)
            except UserError as error:
                refusals.append((name, pair, str(error)))
                continue
            if index == 0:
                rows.append(_row(name, distiller))
    table = _table(COLUMNS, rows)
    refused = _table(("method", "pair", "reason"), sorted(refusals)) if refusals else "None.\n"
    return HEADER.format(teacher=teacher, student=student) + "\n" + table + REFUSALS + refused


def _networks(teacher, student):
    torch.manual_seed(0)
    return build_model(teacher, NUM_CLASSES), build_model(student, NUM_CLASSES)


def _distiller(name, names, networks, features_only):
    """The method with copies of the networks; with `features_only`, None for a method that uses only logits."""
    if features_only and DISTILLERS[name].inputs == "logits":
        return None
    cfg = load_cfg(None, ["DISTILLER.TYPE", name, "DISTILLER.TEACHER", names[0], "DISTILLER.STUDENT", names[1]])
    teacher, student = networks
    return build_distiller(cfg, deepcopy(student), deepcopy(teacher), DATA)


def _row(name, distiller):
    method = DISTILLERS[name]
    aliases = [alias for alias, target in DISTILLERS.aliases.items() if target == name]
    weighed = [loss for loss in _losses(distiller) if loss not in ("ce", *method.batch_terms)]
    storable = method.needs_teacher and method.inputs == "logits" and method.teacher_mode == "eval"
    return (
        f"**{name}**" + (f" ({', '.join(aliases)})" if aliases else ""),
        _linked(method.__doc__.strip().splitlines()[0].rstrip(".")),
        method.inputs if method.needs_teacher else "labels",
        ", ".join(weighed),
        ", ".join(method.batch_terms),
        _modules(distiller),
        ", ".join(view.removeprefix("image_").replace("image", "weak" if len(method.views) > 1 else "one")
                  for view in method.views),
        method.teacher_mode if method.needs_teacher else "",
        "yes" if storable and len(method.views) == 1 else "no",
    )


def _losses(distiller):
    """Names of the losses of one step on random images."""
    generator = torch.Generator().manual_seed(0)
    image, strong = torch.randn(2, BATCH, 3, 32, 32, generator=generator)
    index = torch.arange(BATCH)
    batch = {"image": image, "image_strong": strong, "target": DATA["targets"][:BATCH], "index": index, "epoch": 1}
    with torch.no_grad():
        return list(distiller(**batch)[1])


def _modules(distiller):
    own = {name: child for name, child in distiller.named_children() if child is not distiller.student}
    counts = {name: _trained(child) for name, child in own.items()}
    names = [name for name, count in counts.items() if count]
    total = distiller.extra_parameters()
    return f"{', '.join(names)}: {total:,}" if total else ""


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _linked(text):
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
