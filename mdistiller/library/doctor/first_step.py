"""Checks of the first step and of the first update in a loop, for faults that make a loss useless."""

import contextlib
import logging
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mdistiller import distributed
from mdistiller.errors import UserError, counted
from mdistiller.library.doctor.finding import Case, Finding, sharded
from mdistiller.library.doctor.inputs import check_images, check_size
from mdistiller.library.doctor.losses import check_losses
from mdistiller.library.doctor.networks import check_networks, check_types
from mdistiller.library.doctor.outputs import check_index, check_labels, check_outputs
from mdistiller.library.doctor.processes import check_processes

log = logging.getLogger("mdistiller")
FATAL = ("student frozen", "loss detached", "shape of logits")  # nothing would be trained, or on wrong numbers
CAUSES = (  # faults for which a step can fail
    "type of the images", "type of the weights", "channels last", "number of classes", "shape of logits",
    "form of the labels", "number of labels", "labels from 1", "label out of range", "index out of range",
)
PATIENCE = 1000  # number of steps after which waiting for an update ends


class FirstStep:
    """Checks the first step and then the first update, and logs each fault once.

    Raises UserError for the faults in `FATAL`.
    """

    def __init__(self):
        self.steps = 0
        self.versions: dict[str, int] = {}
        self.received: set[str] = set()
        self.hooks: weakref.finalize | None = None

    def __reduce__(self):
        return FirstStep, ()  # a copy of the module has other parameters, and begins anew

    def before(self, kd, target: Tensor | None, stored: Tensor | None, extra: dict[str, Any]) -> None:
        """Before the first pass: check labels and index, which crash a GPU if out of range; the task keeps outputs, the
        teacher's `stored` ones too."""
        if self.steps == 0 and hasattr(kd.distiller.task, "kept"):
            raise_cause([*check_labels(Case(kd, None, target)), *check_index(kd, extra)])
            kd.distiller.task.kept = {} if stored is None else {"teacher": stored}

    def after(self, kd, step, inputs: Any, target: Tensor | None) -> "FirstStep | None":
        """Check after a step; returns itself, or None when nothing is left to check."""
        self.steps += 1
        if self.steps == 1:
            report(self._first(kd, step, inputs, target))
            return None if sharded(kd) else self._begin(kd)
        moved = {name for name, parameter in kd.distiller.named_parameters() if self._moved(name, parameter)}
        if not any(name.startswith("student.") for name in moved):
            return self if self.steps < PATIENCE else self.end()
        own = [name for name in self.versions if name in self.received - moved and not name.startswith("student.")]
        if own:
            report(
                [
                    Finding(
                        "module not in the optimiser",
                        f"an update changed the student and not {own[0]} of "
                        f"{kd.distiller.method} ({counted(len(own), 'parameter')}): give the optimiser "
                        "kd.learnable_parameters()",
                    )
                ]
            )
        return self.end()

    def end(self) -> None:
        """Remove the hooks of the parameters."""
        if self.hooks is not None:
            self.hooks()

    def _first(self, kd, step, inputs, target):
        case = _case(kd, inputs, target)
        with torch.no_grad():
            found = [*check_networks(case), *check_images(case), *check_outputs(case), *check_size(case)]
        return [*found, *check_processes(case), *check_losses(case, step)]

    def _begin(self, kd):
        handles = []
        for name, parameter in kd.distiller.named_parameters():
            if parameter.requires_grad:
                self.versions[name] = parameter._version
                note = partial(self._note, name)
                handles.append(parameter.register_post_accumulate_grad_hook(note))
        self.hooks = weakref.finalize(kd, _remove, handles)  # the student may outlive kd
        self.hooks.atexit = False
        return self

    def _note(self, name, parameter):
        self.received.add(name)

    def _moved(self, name, parameter):
        return parameter._version != self.versions.get(name, parameter._version)


def _remove(handles):
    for handle in handles:
        handle.remove()


def _case(kd, inputs, target):
    """A case with the outputs that the task kept, which keeps no more; without labels if they are not one a sample."""
    task = kd.distiller.task
    if not hasattr(task, "kept"):
        return Case(kd, inputs, None)
    kept, task.kept = task.kept or {}, None
    return Case(kd, inputs, target, kept.get("student"), kept.get("teacher"))


def explain(kd, error: Exception, inputs: Any, target: Any, extra: dict[str, Any]) -> None:
    """Raise UserError in place of the `error` of a step if the batch or the networks' outputs show its cause."""
    case, found = _case(kd, inputs, target), []
    with contextlib.suppress(Exception):  # after some errors a GPU answers nothing
        found += [*check_images(case), *check_outputs(case), *check_index(kd, extra), *check_types(case, error)]
    raise_cause(found, error)


def raise_cause(findings: list[Finding], error: Exception | None = None) -> None:
    """Raise UserError, from `error`, for the first finding with which a step fails."""
    for finding in findings:
        if finding.name in CAUSES:
            raise UserError(str(finding)) from error


def report(findings: list[Finding]) -> None:
    """Log each finding as a warning. Raises UserError for the first one of `FATAL`."""
    for finding in findings:
        if finding.name in FATAL:
            raise UserError(str(finding))
        if distributed.rank() == 0:
            log.warning("%s", finding)
