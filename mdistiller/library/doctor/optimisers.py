"""Checks that the optimiser has the parameters to be trained."""

from collections.abc import Iterator

from mdistiller.errors import counted
from mdistiller.library.doctor.finding import Case, Finding, many


def check_optimiser(case: Case) -> Iterator[Finding]:
    """Faults of the optimiser passed to `diagnose`, if any."""
    optimizer = case.settings.get("optimizer")
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {id(parameter): name for name, parameter in case.kd.distiller.named_parameters() if parameter.requires_grad}
    missing = [name for key, name in names.items() if key not in held]
    modules = [name for name in missing if not name.startswith("student.")]
    if modules:
        yield Finding(
            "module not in the optimiser",
            f"{many(modules)} of {case.kd.distiller.method} are not in the "
            "optimiser: give it kd.learnable_parameters()",
        )
    if len(missing) > len(modules):
        lacking = [name for name in missing if name.startswith("student.")]
        yield Finding(
            "student not in the optimiser",
            f"the optimiser lacks {counted(len(lacking), 'parameter')} of the student "
            f"({many(lacking)}): it was made before the student was replaced?",
        )
    teacher = case.kd.distiller.teacher
    if teacher is not None and any(id(parameter) in held for parameter in teacher.parameters()):
        yield Finding(
            "teacher in the optimiser",
            "the optimiser holds parameters of the teacher: weight decay would "
            "change it; give it kd.learnable_parameters()",
        )
    if all(group.get("lr", 1.0) == 0 for group in optimizer.param_groups):
        yield Finding("learning rate zero", "the learning rate of every group is 0: has the scheduler ended?")
