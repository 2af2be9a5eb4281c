"""Checks of the losses of one step: their values, and the parameters that they train."""

import math
from collections.abc import Iterator

import torch

from mdistiller.library.doctor.finding import Case, Finding, many, norm_layers, reached_parameters, sharded

DWARFED = 1e-4  # fraction of the largest gradient below which a loss has no influence


def check_losses(case: Case, step) -> Iterator[Finding]:
    """Faults of a `Step` in train mode, before its graph is freed."""
    distiller = case.kd.distiller
    values = dict(
        zip(step.losses, torch.stack([loss.detach().float() for loss in step.losses.values()]).tolist(), strict=True)
    )
    for name, value in values.items():
        if not math.isfinite(value):
            yield Finding(
                "loss not finite",
                f"the loss {name} is {value}: look at the logits of both networks, and "
                "lower the learning rate or the loss's weight",
            )
        elif value == 0 and distiller.supervised_weight(name) != 0 and name not in distiller.rare_terms:
            yield Finding("loss zero", f"the loss {name} is 0: are both networks the same, or its weight 0?")
    yield from _reach(case.kd, step.losses, values)
    if step.weight is not None and distiller.weighted and not bool(step.weight.any()):
        yield Finding("weights zero", "every sample has the weight 0: the teacher's softmax is one-hot on this batch")
    alone = len(step.logits) == 1 and [norm for norm in norm_layers(case.kd.student) if norm.training]
    if alone:
        yield Finding(
            "batch norm of one sample",
            "the student's batch norms see a batch of one sample, whose "
            "statistics say nothing: use larger batches (drop_last=True)",
        )


def _reach(kd, losses, values):
    """Parameters of the student and of the method's modules that no loss trains."""
    if sharded(kd):
        return
    student = {id(parameter) for parameter in kd.distiller.student.parameters()}
    reached: set[int] = set()
    for name, loss in losses.items():
        found = reached_parameters(loss)
        reached |= found
        weightless = values[name] == 0
        if not found & student and not weightless:
            yield Finding(
                "loss detached",
                f"no gradient of the loss {name} reaches the student: its output was detached or made under no_grad",
            )
    if kd.distiller.varying_modules:
        return
    idle = [
        name
        for name, parameter in kd.distiller.named_parameters()
        if parameter.requires_grad and not name.startswith("student.") and id(parameter) not in reached
    ]
    if idle:
        yield Finding("idle module", f"no loss trains {many(idle)} of the method")


def check_gradients(case: Case, step) -> Iterator[Finding]:
    """A distillation loss whose gradient is negligible compared with that of the labels, or the reverse."""
    parameters = [parameter for parameter in case.kd.student.parameters() if parameter.requires_grad]
    if not parameters or sharded(case.kd):
        return
    sizes = {}
    for name, loss in step.losses.items():
        if loss.requires_grad and bool(torch.isfinite(loss)):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            sizes[name] = float(sum(g.float().square().sum() for g in gradients if g is not None)) ** 0.5
    largest = max(sizes.values(), default=0.0)
    small = [name for name, size in sizes.items() if 0 < size < DWARFED * largest]
    if small:
        yield Finding(
            "loss without a say",
            f"the gradient of the loss {small[0]} is {sizes[small[0]] / largest:.1e} of "
            "the largest one: look at its weight and at its scale",
        )
    huge = [name for name, size in sizes.items() if not math.isfinite(size)]
    if huge:
        yield Finding("gradient not finite", f"the gradient of the loss {huge[0]} is infinite or NaN")
