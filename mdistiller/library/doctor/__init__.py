"""Checks of a distillation for faults that silently spoil a loss, each reported in one line."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mdistiller.errors import UserError, first_line
from mdistiller.library.batch import STORED, sorted_batch
from mdistiller.library.doctor.finding import Case, Finding
from mdistiller.library.doctor.formulas import check_formula
from mdistiller.library.doctor.inputs import check_images, check_readings, check_size
from mdistiller.library.doctor.losses import check_gradients, check_losses
from mdistiller.library.doctor.networks import check_networks, check_types
from mdistiller.library.doctor.optimisers import check_optimiser
from mdistiller.library.doctor.outputs import check_outputs
from mdistiller.library.doctor.stored import check_checkpoint, check_determinism, check_stored
from mdistiller.library.networks import call
from mdistiller.models.base import modes_kept

__all__ = ["Finding", "diagnose"]


def diagnose(
    kd, batch: Any, *, optimizer: torch.optim.Optimizer | None = None, loss=None, checkpoint: Any = None
) -> list[Finding]:
    """All faults of a `Distillation` that one batch shows, each a `Finding` of one line; [] without faults.

    `batch` is what the loop passes: (x, y), a tensor, or a mapping of the keywords of `kd`. It should be a training
    batch of at least 32 samples from the loader. If given, `optimizer` is checked, too; `loss`, a user's function of
    (logits_student, logits_teacher), is compared with the correct divergence, and `checkpoint`, a file or a state dict,
    with the teacher's weights. Weights, statistics and the state of random generators are not changed.
    """
    arguments = _arguments(batch)
    stored, image, target = (arguments.pop(name, None) for name in ("teacher_logits", "image", "target"))
    inputs, target, extra = sorted_batch(image, target, arguments, kd.reads)
    stored = extra.pop(STORED, stored)
    labels = target if isinstance(target, Tensor) else None
    case = Case(
        kd, inputs, labels, stored=stored, settings={"loss": loss, "optimizer": optimizer, "checkpoint": checkpoint}
    )
    found = []
    if target is not labels:
        found.append(Finding("form of the labels", f"labels are a {type(target).__name__}; expected a tensor (n,)"))
    found += [*check_networks(case), *check_optimiser(case), *check_checkpoint(case), *check_images(case)]
    found += _of_passes(case, stored, extra)
    return list({finding.name: finding for finding in reversed(found)}.values())[::-1]


def _arguments(batch) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor):
        return {"image": batch}
    return dict(zip(("image", "target"), batch, strict=False))


def _of_passes(case: Case, stored, extra) -> Iterator[Finding]:
    kd = case.kd
    state, mode = deepcopy(kd.distiller.state_dict()), kd.training
    teacher = kd.distiller.teacher
    buffers = [(buffer, buffer.clone()) for buffer in teacher.buffers()] if teacher is not None else []
    watch, kd._watch = kd._watch, None
    with modes_kept(teacher):
        try:
            with torch.random.fork_rng():
                with modes_kept(teacher):
                    yield from _evaluated(case)
                yield from _trained(case, stored, extra)
        except Exception as error:  # of any kind, raised by a user's networks
            yield from check_types(case, error)
            reason = str(error) if isinstance(error, UserError) else first_line(error)
            yield Finding("pass fails", f"a step cannot be made: {reason}")
        finally:
            kd.distiller.load_state_dict(state)
            kd.train(mode)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            kd._watch = watch


@torch.no_grad()
def _evaluated(case: Case) -> Iterator[Finding]:
    """Checks of the networks in eval mode."""
    distiller, inputs = case.kd.distiller, case.inputs
    prepared = distiller.task.prepare(inputs, case.target) if hasattr(distiller.task, "prepare") else {"image": inputs}
    inputs = distiller.task.inputs(prepared, "image")
    case.kd.student.eval()
    output = _full(distiller.run_student(inputs))
    case.logits_student = output.logits
    if case.kd.teacher is not None:
        yield from check_determinism(lambda: _full(distiller.run_teacher(inputs, output)).logits)
        distiller.teacher.eval()
        case.logits_teacher = _full(distiller.run_teacher(inputs, output)).logits
    elif case.stored is not None:
        case.logits_teacher = case.stored
    labels, case.target = case.target, prepared.get("target", case.target)  # of a language model, those of its tokens
    yield from check_outputs(case)
    yield from check_size(case)
    yield from check_stored(case)
    if case.kd.teacher is not None and case.image is not None:

        def run(image):
            inputs = {**case.inputs, "pixel_values": image} if isinstance(case.inputs, dict) else image
            return call(distiller.teacher, inputs).logits

        yield from check_readings(case, run)
    with torch.enable_grad():
        yield from check_formula(case)
    case.target = labels


def _full(output):
    return output.in_full() if hasattr(output, "in_full") else output


def _trained(case: Case, stored, extra) -> Iterator[Finding]:
    """Checks of one step in train mode."""
    kd = case.kd
    if not kd.training:
        yield Finding(
            "eval mode", "the module is in eval mode, in which nothing is distilled; call kd.train() before each epoch"
        )
    training = kd.distiller.teacher.training if kd.distiller.teacher is not None else False
    kd.train()
    if kd.distiller.teacher is not None and training != kd.distiller.teacher.training:
        kd.distiller.teacher.train(training)
    with torch.enable_grad():
        step = kd(case.inputs, case.target, teacher_logits=stored, **extra)
        yield from check_losses(case, step)
        yield from check_gradients(case, step)
