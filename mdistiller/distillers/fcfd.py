"""Function-consistent feature distillation (Liu et al., ICLR 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdistiller.config import Key, temperature_key, warm_up_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit
from mdistiller.distillers.kd import kd_loss
from mdistiller.errors import UserError
from mdistiller.functional import warm_up
from mdistiller.models.base import Output

DIRECTIONS = {"bi": ("s2t", "t2s"), "s2t": ("s2t",), "t2s": ("t2s",), "nomix": ()}  # student to teacher, or back


def fcfd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    feats_bridged: list[Tensor],
    feats_teacher: list[Tensor],
    feats_mixed: list[list[Tensor]],
    logits_mixed: list[Tensor],
    temperature: float,
) -> dict[str, Tensor]:
    """Losses of one batch by group, (B,) each (Liu et al., ICLR 2023, openreview pgHNOcxEdRI).

    `feats_teacher`, and the student's `feats_bridged` to its shapes, are maps (B, C, H, W) of the same stages, the last
    one at the end; `feats_mixed` has, for each path that ends in the teacher, the maps of the last stages along it;
    logits (B, C), `logits_mixed` those of every mixed path. `appearance` and `functional` sum the squared distances of
    feats_bridged and feats_mixed to feats_teacher, `kd` and `mixed` the KL divergences of logits_student and
    logits_mixed from logits_teacher. Sums over stages and paths, not means; zeros where there is no path. No gradient
    reaches the teacher's logits and feats.
    """
    target, feats_teacher = logits_teacher.detach(), [feat.detach() for feat in feats_teacher]
    nothing = torch.zeros_like(target[:, 0])
    return {
        "appearance": _distance(feats_bridged, feats_teacher),
        "functional": sum((_distance(feats, feats_teacher) for feats in feats_mixed), nothing),
        "kd": kd_loss(logits_student, target, temperature),
        "mixed": sum((kd_loss(logits, target, temperature) for logits in logits_mixed), nothing),
    }


def _distance(feats, feats_teacher):
    """Mean squared differences of maps, the last of both lists being of the same stage, and of the last ones pooled."""
    pairs = list(zip(reversed(feats), reversed(feats_teacher), strict=False))
    pooled = [F.relu(feat).mean((2, 3)) for feat in pairs[0]]
    maps = [(feat - feat_teacher).square().mean((1, 2, 3)) for feat, feat_teacher in pairs]
    return sum(maps) + (pooled[0] - pooled[1]).square().mean(1)


def _ratio(source, target):
    """How many times larger maps of shape `source` (1, C, H, W) are than those of `target`; None if H and W differ."""
    ratios = {length / other for length, other in zip(source[2:], target[2:], strict=True)}
    return ratios.pop() if len(ratios) == 1 else None


def bridge(source: tuple[int, ...], target: tuple[int, ...], activate: bool) -> nn.Sequential:
    """Maps of shape `source` (1, C, H, W) to `target`: convolution, batch norm, LeakyReLU(0.1) if `activate`.

    Sizes are equal or a factor of two apart.
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
    """Within, batch norms in train mode use the batch's statistics and leave their running ones as they are.

    Those in eval mode use their running statistics, as ever. Departs from the authors' code, which swaps in private
    running statistics for every path: nothing ever reads those.
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


def _run(network, x, first=0):
    """The network from stage `first` on: an output whose features are the stages' (`stages`)."""
    feats = []
    for stage in network.stages()[first:]:
        x = stage(x)
        feats.append(x)
    return Output(network.head(x), {"stages": feats})


@register("FCFD")
class FCFD(Distiller):
    """Function-Consistent Feature Distillation (Liu, Kan, Shan, Chen, ICLR 2023, openreview pgHNOcxEdRI).

    The student's feats, bridged to the teacher's shapes, should equal the teacher's (appearance) and do the same as
    them in the layers that follow (functional, mixed). Mixed paths switch network once, after an inner stage; every
    batch draws EXTRA_PATHS of them, into the teacher (EXTRA_TYPE s2t), into the student (t2s), or of either (bi).
    CE + KD_WEIGHT * kd + MIX_WEIGHT * mixed + FEAT_WEIGHT * min(epoch / WARMUP, 1) * (appearance + functional).

    As in the authors' code the teacher is in train mode: it normalises with the batch's statistics. TEACHER_MODE eval,
    a variant, uses its running ones, in mixed paths too. Departs from that code: the bridge of the last stage into the
    student, which no path uses, is not made.
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "KD_WEIGHT": weight_key(1.0, "the divergence of the logits"),
        "TEMPERATURE": temperature_key(4.0),
        "FEAT_WEIGHT": weight_key(5.0, "the appearance and functional losses"),
        "MIX_WEIGHT": weight_key(1.0, "the mixed paths' cross-entropy and divergence"),
        "EXTRA_PATHS": Key(2, least=0, most=64, help="Mixed paths drawn for each batch."),
        "EXTRA_TYPE": Key("bi", choices=tuple(DIRECTIONS), help=(
            "Direction of the mixed paths: student to teacher, teacher to student, both, or none.")),
        "WARMUP": warm_up_key(20, "the appearance and functional losses"),
        "TEACHER_MODE": Key("train", choices=("train", "eval"), help="Mode of the teacher's batch norms."),
    }
    inputs = "features"
    teacher_mode = "train"
    varying_modules = True  # a bridge into the student trains in the batches that draw its path

    @classmethod
    def check(cls, cfg):
        if cfg.EXTRA_TYPE == "nomix" and cfg.EXTRA_PATHS:
            return "EXTRA_PATHS", f"expected 0 with EXTRA_TYPE nomix; found {cfg.EXTRA_PATHS}"
        return None

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
        self.to_teacher = nn.ModuleList(bridge(student[k], teacher[k], into_teacher) for k in outer)  # of k at k - 1
        self.to_student = nn.ModuleList(bridge(teacher[k], student[k], into_student) for k in inner)

    def run_student(self, image):
        kind = image.device.type  # the mixed paths of this step run in the precision of the pure ones
        self.precision = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        return _run(self.student, image)

    def run_teacher(self, image, student=None):
        with torch.no_grad():
            return _run(self.teacher, image)

    def draw_paths(self) -> list[tuple[str, int]]:
        """(direction, stage after which it switches) of this batch's mixed paths, by torch's CPU generator.

        Whoever trains in several processes seeds that generator alike in all of them.
        """
        drawn = torch.randperm(len(self.paths), device="cpu")[: self.extra_paths]
        return [self.paths[index] for index in drawn.tolist()]

    def sample_losses(self, student, teacher, epoch, **batch):
        paths = self.draw_paths()
        feats_student, feats_teacher = student.features["stages"], teacher.features["stages"]
        with torch.autocast(student.logits.device.type, **self.precision), still_statistics(self.student, self.teacher):
            feats = [module(feat) for module, feat in zip(self.to_teacher, feats_student[1:], strict=True)]
            bridged = Output(student.logits, {"stages": feats})
            into_teacher = [_run(self.teacher, feats[k - 1], k + 1) for direction, k in paths if direction == "s2t"]
            into_student = [
                _run(self.student, self.to_student[k - 1](feats_teacher[k]), k + 1)
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
