"""Functions that feature methods share: the maps to compare, and pooling two maps to one size. Not a method."""

from torch import Tensor

from mdistiller.errors import UserError


def stages(output) -> list[Tensor]:
    """The `feats` (B, C, H, W) of an `Output` without level 0, the stem."""
    return output.features["feats"][1:]


def feat_shapes(distiller, input_size=None) -> tuple[list[tuple], list[tuple]]:
    """Shapes (1, C, H, W) of the student's and the teacher's `feats`, the stem first.

    Raises UserError for a network without such maps (possible for networks of other libraries).
    """
    student, teacher = (
        [tuple(feat.shape) for feat in output.features.get("feats", [])] for output in distiller.dry_run(input_size)
    )
    if any(not shapes or any(len(shape) != 4 for shape in shapes) for shapes in (student, teacher)):
        raise misfit(distiller, student, teacher, "it compares maps (channels x height x width)")
    return student, teacher


def misfit(distiller, student: list[tuple], teacher: list[tuple], reason: str) -> UserError:
    """The error for networks that the method cannot use: one line with their names and the shapes of their maps."""
    names = distiller.cfg.DISTILLER
    return UserError(
        f"{distiller.method} cannot use these networks ({reason}): "
        f"maps of student {names.STUDENT} {_sizes(student)}; of teacher {names.TEACHER} {_sizes(teacher)}"
    )


def _sizes(shapes):
    return ", ".join("x".join(map(str, shape[1:])) for shape in shapes) or "none"
