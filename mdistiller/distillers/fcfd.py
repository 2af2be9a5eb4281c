"""Function-consistent feature distillation (Liu et al., ICLR 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdistiller.config import Key, temperature_key, warm_up_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit
from mdistiller.distillers.kd import regression_loss
from mdistiller.errors import UserError
from mdistiller.functional import warm_up, wide
from mdistiller.hooks import before_loading
from mdistiller.losses.fcfd import fcfd_loss
from mdistiller.losses.kd import kd_loss
from mdistiller.models.base import Output

DIRECTIONS = {"bi": ("s2t", "t2s"), "s2t": ("s2t",), "t2s": ("t2s",), "nomix": ()}  # s: student, t: teacher


def _ratio(source, target):
    """Size of a map of shape `source` (1, C, H, W) over that of `target`; None if the ratios of H and of W differ."""
    ratios = {length / other for length, other in zip(source[2:], target[2:], strict=True)}
    return ratios.pop() if len(ratios) == 1 else None


def bridge(source: tuple[int, ...], target: tuple[int, ...], activate: bool) -> nn.Sequential:
    """A module from maps of shape `source` (1, C, H, W) to `target`: convolution, batch norm, LeakyReLU if `activate`.

    The sizes of the two must be equal or differ by a factor of two. The slope of the LeakyReLU is 0.1.
    """
    ratio, channels, out_channels = _ratio(source, target), source[1], target[1]
    if ratio == 0.5:
        conv = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(channels, out_channels, 3, stride=int(ratio), padding=1, bias=ratio == 2)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([nn.LeakyReLU(0.1)] if activate else []))


@contextmanager
def still_statistics(*networks: nn.Module) -> Iterator[None]:
    """Context in which batch norms in train mode use batch statistics without updating their running statistics.

    Batch norms in eval mode use their running statistics as usual. Departs from the authors' code, which keeps separate
    running statistics for every path, although nothing reads them.
    """
    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.training and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _rename_bridges(module, state_dict, prefix, *_):
    """Rename the bridges in a state that an earlier version has saved."""
    for before, now in (("to_teacher.", "bridges."), ("to_student.", "bridges_back.")):
        for key in [key for key in state_dict if key.startswith(prefix + before)]:
            state_dict[prefix + now + key.removeprefix(prefix + before)] = state_dict.pop(key)


def _run(network, x, first=0):
    """Run the network from stage `first` on; the features of the output are the maps of these stages ("stages")."""
    feats, x = [], x.to(next(network.parameters()).dtype)  # a mixed path comes from float32
    for stage in network.stages()[first:]:
        x = stage(x)
        feats.append(x)
    return Output(network.head(x), {"stages": feats})


@register("FCFD")
class FCFD(Distiller):
    """Function-Consistent Feature Distillation (Liu, Kan, Shan, Chen, ICLR 2023, openreview pgHNOcxEdRI).

    The student's maps, brought to the teacher's shapes by bridges, should equal the teacher's maps (appearance) and
    should have the same effect in the layers that follow (functional, mixed). For the latter, mixed paths start in one
    network and continue in the other after one of the inner stages. EXTRA_PATHS of them are drawn for every batch: from
    the student into the teacher (EXTRA_TYPE s2t), from the teacher into the student (t2s), or both (bi).
    CE + KD_WEIGHT * kd + MIX_WEIGHT * mixed + FEAT_WEIGHT * min(epoch / WARMUP, 1) * (appearance + functional).

    As in the authors' code, the teacher is in train mode, so its batch norms use batch statistics. The variant
    TEACHER_MODE eval uses running statistics instead, in mixed paths too. Departs from that code: the bridge after the
    last stage into the student, which no path uses, is left out.
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "KD_WEIGHT": weight_key(1.0, "the divergence of the logits"),
        "TEMPERATURE": temperature_key(4.0),
        "FEAT_WEIGHT": weight_key(5.0, "the appearance and functional losses"),
        "MIX_WEIGHT": weight_key(1.0, "the mixed paths' divergence"),
        "EXTRA_PATHS": Key(2, least=0, most=64, help="Mixed paths drawn for each batch."),
        "EXTRA_TYPE": Key("bi", choices=tuple(DIRECTIONS), help=(
            "Direction of the mixed paths: student to teacher, teacher to student, both, or none.")),
        "REGRESSION_WEIGHT": weight_key(1.0, "the squared distances of what networks regress, if anything"),
        "WARMUP": warm_up_key(20, "the appearance and functional losses"),
        "TEACHER_MODE": Key("train", choices=("train", "eval"), help=(
            "Mode of the teacher: batch norms use batch statistics (train) or running statistics (eval).")),
    }
    search = {"KD_WEIGHT": 10, "FEAT_WEIGHT": 10, "TEMPERATURE": 4}
    inputs = "features"
    needs = ("feats",)
    teacher_mode = "train"
    varying_modules = True  # a bridge into the student is used only if its path is drawn
    rare_terms = ("functional", "mixed")  # without a path into the teacher, or without any

    @classmethod
    def check(cls, cfg):
        if cfg.EXTRA_TYPE == "nomix" and cfg.EXTRA_PATHS:
            return "EXTRA_PATHS", f"expected 0 with EXTRA_TYPE nomix; found {cfg.EXTRA_PATHS}"
        return None

    @classmethod
    def suited(cls, task):
        if task is None or not task.head_maps:
            return cls
        return EAPyramidFCFD if cls.weighted else PyramidFCFD

    def build(self, cfg):
        self.ce_weight, self.kd_weight, self.mix_weight = cfg.CE_WEIGHT, cfg.KD_WEIGHT, cfg.MIX_WEIGHT
        self.feat_weight, self.warmup = cfg.FEAT_WEIGHT, cfg.WARMUP
        self.temperature, self.teacher_mode = cfg.TEMPERATURE, cfg.TEACHER_MODE
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            if not hasattr(network, "stage_kind"):
                raise UserError(
                    f"FCFD runs networks stage by stage: the {role} ({type(network).__name__}) has no stage_kind, "
                    "stages() and head(); the networks of mdistiller.models have them"
                )
        student, teacher = self.feature_shapes(key="stages")
        if len(student) != len(teacher):
            raise misfit(self, student, teacher, "needs as many stages in the student as in the teacher")
        if any(_ratio(*pair) not in (0.5, 1, 2) for pair in zip(student[1:], teacher[1:], strict=True)):
            raise misfit(self, student, teacher, "bridges maps of equal size or a factor of two apart, stage by stage")
        inner = range(1, len(student) - 1)  # the stages after which a path may switch
        self.paths = [(direction, stage) for direction in DIRECTIONS[cfg.EXTRA_TYPE] for stage in inner]
        self.extra_paths = cfg.EXTRA_PATHS
        if self.extra_paths > len(self.paths):
            raise UserError(
                f"FCFD.EXTRA_PATHS: expected at most {len(self.paths)}, the mixed paths of type {cfg.EXTRA_TYPE} "
                f"through {len(student)} stages; found {self.extra_paths}"
            )
        into_teacher, into_student = (net.stage_kind == "after_relu" for net in (self.teacher, self.student))
        outer = range(1, len(student))
        self.bridges = nn.ModuleList(bridge(student[k], teacher[k], into_teacher) for k in outer)  # stage k at k - 1
        self.bridges_back = nn.ModuleList(bridge(teacher[k], student[k], into_student) for k in inner)
        before_loading(self, _rename_bridges)

    def run_student(self, image):
        kind = image.device.type  # mixed paths use the precision of this pass
        self.precision = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        return _run(self.student, image)

    def run_teacher(self, image, student=None):
        with torch.no_grad():
            return _run(self.teacher, image)

    def draw_paths(self) -> list[tuple[str, int]]:
        """(direction, stage after which the network changes) of the mixed paths of a batch, from torch's CPU generator.

        With several processes, that generator must have the same seed in all of them.
        """
        drawn = torch.randperm(len(self.paths), device="cpu")[: self.extra_paths]
        return [self.paths[index] for index in drawn.tolist()]

    def sample_losses(self, student, teacher, epoch, **batch):
        paths = self.draw_paths()
        feats_student, feats_teacher = student.features["stages"], teacher.features["stages"]
        with torch.autocast(student.logits.device.type, **self.precision), still_statistics(self.student, self.teacher):
            feats = [module(feat) for module, feat in zip(self.bridges, feats_student[1:], strict=True)]
            bridged = Output(student.logits, {"stages": feats})
            into_teacher = [_run(self.teacher, feats[k - 1], k + 1) for direction, k in paths if direction == "s2t"]
            into_student = [
                _run(self.student, self.bridges_back[k - 1](feats_teacher[k]), k + 1)
                for direction, k in paths
                if direction == "t2s"
            ]
        bridged, *mixed = (self.full_precision(output) for output in [bridged, *into_teacher, *into_student])
        losses = fcfd_loss(
            student.logits,
            teacher.logits,
            bridged.features["stages"],
            feats_teacher[1:],
            [output.features["stages"] for output in mixed[: len(into_teacher)]],
            [output.logits for output in mixed],
            self.temperature,
        )
        feat_weight = self.feat_weight * warm_up(epoch, self.warmup)
        weights = {"appearance": feat_weight, "functional": feat_weight, "kd": self.kd_weight, "mixed": self.mix_weight}
        return {name: weights[name] * loss for name, loss in losses.items()}


class PyramidFCFD(FCFD):
    """FCFD between feature pyramids, as in its authors' code for those (openreview pgHNOcxEdRI).

    Every level of the student, bridged to the teacher's channels, should equal the teacher's (appearance, one loss an
    image). The networks' heads then read the maps of the other network, bridged: the student's through the teacher's
    head, and the teacher's through the student's, in every step (EXTRA_TYPE chooses both, one or none; EXTRA_PATHS has
    no effect). The loss is KD_WEIGHT * kd of the student, plus MIX_WEIGHT * mixed of these predictions, plus
    REGRESSION_WEIGHT * the squared distances of what all of them regress, plus FEAT_WEIGHT * min(epoch / WARMUP, 1) *
    appearance. The teacher is in eval mode; there is no functional loss. Departs from that code: a bridge into the
    student that its head would not read is not made.
    """

    needs = ("image_feats",)
    teacher_mode = "eval"
    varying_modules = False
    image_terms = ("appearance",)

    def build(self, cfg):
        self.kd_weight, self.mix_weight, self.feat_weight = cfg.KD_WEIGHT, cfg.MIX_WEIGHT, cfg.FEAT_WEIGHT
        self.regression_weight, self.warmup, self.temperature = cfg.REGRESSION_WEIGHT, cfg.WARMUP, cfg.TEMPERATURE
        student, teacher = self.feature_shapes()
        if [shape[2:] for shape in student] != [shape[2:] for shape in teacher]:
            raise misfit(self, student, teacher, "needs maps of the same sizes in student and teacher")
        pairs, directions = list(zip(student, teacher, strict=True)), DIRECTIONS[cfg.EXTRA_TYPE]
        self.into_teacher = "s2t" in directions
        self.bridges = nn.ModuleList(bridge(*pair, activate=False) for pair in pairs)
        back = pairs[: self.task.head_maps] if "t2s" in directions else []
        self.bridges_back = nn.ModuleList(bridge(*pair[::-1], activate=False) for pair in back)
        before_loading(self, _rename_bridges)

    def run_student(self, inputs):
        kind = inputs.images.tensors.device.type
        self.precision = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        return self.task.run_student(self.student, inputs)

    def run_teacher(self, inputs, student=None):
        return Distiller.run_teacher(self, inputs, student)

    def sample_losses(self, student, teacher, epoch, **batch):
        feats_student, feats_teacher = student.features["feats"], teacher.features["feats"]
        with torch.autocast(student.logits.device.type, **self.precision):
            bridged = [module(feat) for module, feat in zip(self.bridges, feats_student, strict=True)]
            mixed = [self.task.head(self.teacher, bridged, student)] if self.into_teacher else []
            if self.bridges_back:
                back = [module(feat) for module, feat in zip(self.bridges_back, feats_teacher, strict=False)]
                mixed.append(self.task.head(self.student, back, student))
        mixed = [self.full_precision(output) for output in mixed]
        levels = zip(bridged, feats_teacher, strict=True)
        appearance = sum((wide(one) - other).square().mean((1, 2, 3)) for one, other in levels)
        losses = {
            "appearance": self.feat_weight * warm_up(epoch, self.warmup) * appearance,
            "kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature),
            "regression": self.regression_weight * sum(regression_loss(one, teacher) for one in [student, *mixed]),
        }
        if mixed:
            every = [kd_loss(one.logits, teacher.logits, self.temperature) for one in mixed]
            losses["mixed"] = self.mix_weight * sum(every)
        return losses


class EAPyramidFCFD(PyramidFCFD):
    """The same, each sample's losses weighed."""

    __doc__ = PyramidFCFD.__doc__
    weighted = True
