"""Functions that feature methods share: the maps to compare, and the error for unsuitable networks. Not a method."""

from torch import Tensor, nn

from mdistiller.config.loading import is_stated
from mdistiller.errors import UserError


def stages(output) -> list[Tensor]:
    """The `feats` (B, C, H, W) of an `Output` without level 0, the stem."""
    return output.features["feats"][1:]


def shapes_of_maps(distiller, outputs, key: str = "feats") -> tuple[list[tuple], list[tuple]]:
    """Shapes (1, C, H, W) of `features[key]` of both outputs, the student's first, in each the stem first.

    Raises UserError for a network without such maps (possible for networks of other libraries).
    """
    student, teacher = ([tuple(feat.shape) for feat in output.features.get(key, [])] for output in outputs)
    if any(not shapes or any(len(shape) != 4 for shape in shapes) for shapes in (student, teacher)):
        raise misfit(distiller, student, teacher, "it compares maps (channels x height x width)")
    return student, teacher


def shapes_of_stages(distiller, input_size=None) -> tuple[list[tuple], list[tuple]]:
    """Shapes (1, C, H, W) of the maps that `stages` gives of both networks. Raises UserError if one has none."""
    student, teacher = distiller.feature_shapes(input_size)
    if min(len(student), len(teacher)) < 2:
        raise misfit(distiller, student, teacher, "it compares stages, and needs one or more besides the stem")
    return student[1:], teacher[1:]


def misfit(distiller, student: list[tuple], teacher: list[tuple], reason: str) -> UserError:
    """The error for networks that the method cannot use: one line with their names and the shapes of their maps."""
    names = name_of(distiller, "student"), name_of(distiller, "teacher")
    return UserError(
        f"{distiller.method} cannot use these networks ({reason}): "
        f"maps of student {names[0]} {_sizes(student)}; of teacher {names[1]} {_sizes(teacher)}"
    )


def name_of(distiller, role: str) -> str:
    """The name of the "student" or "teacher" for messages: that of the config, else the class of the given network."""
    if is_stated(distiller.cfg, f"DISTILLER.{role.upper()}"):
        return distiller.cfg.DISTILLER[role.upper()]
    network = getattr(distiller, role)
    while isinstance(getattr(network, "inner", None), nn.Module):  # a wrapper
        network = network.inner
    return type(network).__name__


def _sizes(shapes):
    return ", ".join("x".join(map(str, shape[1:])) for shape in shapes) or "none"
