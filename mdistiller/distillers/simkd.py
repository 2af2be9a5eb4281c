"""Distillation with the reused teacher classifier (Chen et al., CVPR 2022)."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import register
from mdistiller.distillers.last_map import LastMapDistiller, run_to_map
from mdistiller.losses.simkd import simkd_loss
from mdistiller.models.base import Output


def projector(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU; inner layers have `out_channels` / `factor`."""
    hidden = max(out_channels // factor, 1)
    layers = []
    for source, target, kernel in ((in_channels, hidden, 1), (hidden, hidden, 3), (hidden, out_channels, 1)):
        conv = nn.Conv2d(source, target, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(target), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def encoded(encoder: nn.Module, image: Tensor, before_last: bool) -> Tensor:
    """The map (B, D, H, W) of a student that is projected: the one it classifies, or the last of its `feats`."""
    if before_last:
        return encoder(image).features["feats"][-1]
    return run_to_map(encoder, image).features["map"]


class ReusedClassifier(nn.Module):
    """The deployed network: the encoder (a network of which the last map is used), projector and teacher's classifier.

    With `before_last` the last of the encoder's `feats` is used: in MobileNetV2 and ShuffleNetV2 the map before their
    last convolution. `sizes` are (H, W) of the encoder's and of the teacher's map, for images of the data's size. If
    the encoder's map is larger, it is pooled in this proportion before the projection. `features["map"]` of the output
    is the projected map.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, classifier: nn.Linear, sizes: tuple, before_last: bool
    ):
        super().__init__()
        self.encoder, self.projector, self.classifier, self.sizes = encoder, projector, classifier, sizes
        self.before_last = before_last

    def forward(self, image: Tensor) -> Output:
        source = encoded(self.encoder, image, self.before_last)
        own, teacher = self.sizes
        if own > teacher:
            size = [max(now * b // a, 1) for now, a, b in zip(source.shape[2:], own, teacher, strict=True)]
            source = F.adaptive_avg_pool2d(source, size)
        projected = self.projector(source.to(self.classifier.weight.dtype))  # in float32 beside a half student
        return Output(self.classifier(projected.mean((2, 3))), {"map": projected})


@register("SIMKD")
class SimKD(LastMapDistiller):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022, arXiv:2203.14001).

    FEAT_WEIGHT * mean((projector(student's last map) - teacher's last map)^2), without cross-entropy by default. The
    network that is trained, evaluated and deployed consists of the student, the projector and a frozen copy of the
    teacher's classifier. The student's own classifier is not used and not trained.

    Departs from the released code: the maps of both networks are those before global average and classifier, whereas
    the code takes those before the last convolution of MobileNetV2 (160 channels) and of ShuffleNetV2 (464), as
    STUDENT_MAP before_last_conv does for the student; and evaluation does not run the teacher. The projector ends with
    a ReLU and so cannot fit negative values of a teacher's map; the maps of the CIFAR and ImageNet networks here have
    none.
    """

    defaults = {
        "FACTOR": Key(2, least=1, most=256, help="Divisor of the teacher's channels inside the projector."),
        "STUDENT_MAP": Key("classified", choices=("classified", "before_last_conv"), help=(
            "The student's map that is projected; the two differ in MobileNetV2 and ShuffleNetV2.")),
        "LOSS": {"CE_WEIGHT": weight_key(0.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}

    def build(self, cfg):
        self.ce_weight, self.feat_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.before_last = cfg.STUDENT_MAP == "before_last_conv"
        (_, in_channels, *size), (_, out_channels, *size_teacher) = self.check_maps()
        if self.before_last:
            _, in_channels, *size = self._freeze_the_rest()
        self.sizes = size, size_teacher
        self.projector = projector(in_channels, out_channels, cfg.FACTOR)
        unused, reused = self.classifiers
        unused.requires_grad_(False)
        self.classifier = deepcopy(reused).requires_grad_(False)

    def deployed(self):
        return ReusedClassifier(self.student, self.projector, self.classifier, self.sizes, self.before_last)

    def _freeze_the_rest(self):
        """The shape of the map that is projected; what comes behind it in the student takes no part in the training."""
        parameters = list(self.student.parameters())
        source = encoded(self.student, self.task.blank_inputs(None, parameters[0]), True)
        for parameter, gradient in zip(parameters, torch.autograd.grad(source.sum(), parameters, allow_unused=True),
                                       strict=True):
            parameter.requires_grad_(gradient is not None)
        return source.shape

    def run_student(self, image):
        return self.deployed()(image)

    def sample_losses(self, student, teacher, **batch):
        return {"simkd": self.feat_weight * simkd_loss(student.features["map"], teacher.features["map"])}
