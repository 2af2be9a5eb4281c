"""A comprehensive overhaul of feature distillation (Heo et al., 2019)."""

from torch import nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit
from mdistiller.losses.ofd import margin_from_bn, ofd_loss


def _connector(in_channels, out_channels, kernel):
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=(kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@register("OFD")
class OFD(Distiller):
    """A Comprehensive Overhaul of Feature Distillation (Heo et al., ICCV 2019, arXiv:1904.01866).

    weight * sum over levels of (partial L2 distance of the pre-activations) / 2^(number of deeper levels).
    With TEACHER_MODE train, the authors' choice, the teacher's batch norms use batch statistics; with eval, running
    statistics.

    Departs from mdistiller: the numbers of channels are taken from the maps; for a network without `preact_feats`
    (MobileNetV2, whose stages have no last activation) `feats` are used; and if only the deepest levels are compared,
    their own margins are used.
    """

    defaults = {
        "CONNECTOR": {"KERNEL_SIZE": Key(1, choices=(1, 3, 5, 7, 9, 11), help=(
            "Kernel size of the convolutions from the student's channels to the teacher's."))},
        "TEACHER_MODE": Key("train", choices=("train", "eval"), help=(
            "Mode of the teacher: batch norms use batch statistics (train) or running statistics (eval).")),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(0.001)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)
    teacher_mode = "train"

    def build(self, cfg):
        self.ce_weight, self.feature_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.teacher_mode = cfg.TEACHER_MODE
        maps = [_preactivations(output) for output in self.dry_run()]
        student, teacher = ([tuple(feat.shape) for feat in feats] for feats in maps)
        try:
            norms = self.teacher.get_bn_before_relu()
        except (AttributeError, NotImplementedError):
            norms = []
        self.depth = min(len(student), len(teacher), len(norms))
        if self.depth == 0:
            reason = "it needs maps of both networks and the teacher's batch norm before each activation"
            raise misfit(self, student, teacher, reason)
        student, teacher, norms = student[-self.depth :], teacher[-self.depth :], norms[-self.depth :]
        self.connectors = nn.ModuleList(
            _connector(ours[1], theirs[1], cfg.CONNECTOR.KERNEL_SIZE)
            for ours, theirs in zip(student, teacher, strict=True)
        )
        for level, norm in enumerate(norms):
            self.register_buffer(f"margin{level}", margin_from_bn(norm.weight, norm.bias))

    def sample_losses(self, student, teacher, **batch):
        feats_student = _preactivations(student)[-self.depth :]
        connected = [connect(feat) for connect, feat in zip(self.connectors, feats_student, strict=True)]
        margins = [getattr(self, f"margin{level}") for level in range(self.depth)]
        loss = ofd_loss(connected, _preactivations(teacher)[-self.depth :], margins)
        return {"overhaul": self.feature_weight * loss}


def _preactivations(output):
    """Maps before the last activation of each stage, without the stem; `feats` if stages have no last activation."""
    features = output.features
    return features.get("preact_feats", features.get("feats", []))[1:]
