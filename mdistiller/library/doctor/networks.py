"""Checks of the two networks: their modes, weights and trained parameters."""

from collections.abc import Iterator

import torch
from torch import nn

from mdistiller.library.doctor.finding import Case, Finding, finite, many, norm_layers, shared_storage


def check_networks(case: Case) -> Iterator[Finding]:
    """Faults of student and teacher that can be found without a forward pass."""
    student, teacher = case.kd.student, case.kd.teacher
    yield from _student(student)
    if teacher is None:
        return
    shared = [name for _, name in shared_storage(student, teacher)]
    if shared:
        yield Finding(
            "shared parameters",
            f"student and teacher share {many(shared)}: the teacher changes with every "
            "update; copy them (copy.deepcopy)",
        )
    yield from _teacher(teacher, case.kd.distiller.teacher_mode)


def check_types(case: Case, error: Exception) -> Iterator[Finding]:
    """A network whose weights have another precision than the images, where the error of a step speaks of types.

    Networks that convert their images themselves, as those of transformers, fail for other reasons.
    """
    image = case.image
    if image is None or not image.is_floating_point() or torch.is_autocast_enabled(image.device.type):
        return
    if not isinstance(error, RuntimeError) or "type" not in str(error):
        return
    for role, network in (("student", case.kd.student), ("teacher", case.kd.teacher)):
        kinds = {weight.dtype for weight in network.parameters()} if network is not None else set()
        if kinds and image.dtype not in kinds:
            yield Finding(
                "type of the weights",
                f"the {role}'s weights are {kinds.pop()}, and images are {image.dtype}: convert the {role}, or run the "
                "step in torch.autocast",
            )


def _student(student):
    parameters = list(student.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield Finding(
            "student frozen", "no parameter of the student requires a gradient; call student.requires_grad_(True)"
        )
    half = [name for name, parameter in student.named_parameters() if parameter.dtype == torch.float16]
    if half:
        yield Finding(
            "student in float16",
            f"the student's weights ({many(half)}) are float16, in which small updates "
            "are lost; keep them in float32 and use torch.autocast",
        )
    if not all(finite(parameter) for parameter in parameters):
        yield Finding("student not finite", "weights of the student are infinite or NaN before training begins")


def _teacher(teacher, wanted):
    training = [name or type(module).__name__ for name, module in teacher.named_modules() if module.training]
    if training and wanted == "eval":
        dropouts = [
            name
            for name, module in teacher.named_modules()
            if module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        ]
        if dropouts:
            yield Finding(
                "dropout in the teacher",
                f"dropout is active in the teacher ({many(dropouts)}): its targets "
                "are noise; call teacher.eval() after kd.train()",
            )
        yield Finding(
            "teacher in train mode",
            f"modules of the teacher are in train mode ({many(training)}): batch norm "
            "and dropout act as in training; call teacher.eval() after kd.train()",
        )
    trained = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    if trained:
        yield Finding(
            "teacher not frozen",
            f"parameters of the teacher require gradients ({many(trained)}); call teacher.requires_grad_(False)",
        )
    if not all(finite(parameter) for parameter in teacher.parameters()):
        yield Finding("teacher not finite", "weights of the teacher are infinite or NaN: its checkpoint is damaged")
    norms = [norm for norm in norm_layers(teacher) if norm.track_running_stats]
    fresh = [norm for norm in norms if bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())]
    if norms and len(fresh) == len(norms):
        yield Finding(
            "teacher without statistics",
            "every batch norm of the teacher has the running mean 0 and variance "
            "1 of a new network: its checkpoint was not loaded, or lacks buffers",
        )
