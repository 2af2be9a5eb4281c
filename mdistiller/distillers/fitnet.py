"""FitNets: distillation of one intermediate layer, the hint (Romero et al., 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit
from mdistiller.errors import UserError
from mdistiller.losses.fitnet import fitnet_loss


class ConvRegressor(nn.Module):
    """Maps the student's features to the shape of the teacher's: a convolution that changes the size, batch norm, ReLU.

    `student` and `teacher` are shapes (1, C, H, W). Raises ValueError if no such convolution exists: if the teacher's
    map is larger, but not twice as large.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]):
        super().__init__()
        (_, in_channels, *size), (_, out_channels, *target) = student, teacher
        doubled = [2 * length for length in target]
        if size == doubled:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        elif [2 * length for length in size] == target:
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        elif all(ours >= theirs for ours, theirs in zip(size, target, strict=True)):
            kernel = [1 + ours - theirs for ours, theirs in zip(size, target, strict=True)]
            self.conv = nn.Conv2d(in_channels, out_channels, kernel)
        else:
            raise ValueError(f"no convolution changes a map of size {tuple(size)} to {tuple(target)}")
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


@register("FITNET")
class FitNet(Distiller):
    """FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv:1412.6550).

    weight * mean((ReLU(BN(conv(student))) - teacher)^2) at one level of `feats`, where the stem is level 0. INPUT_SIZE
    is the image size for which shapes are computed; it is used only if the data have no size.

    Departs from the paper: the hint and the cross-entropy are trained together, as in RepDistiller.
    """

    defaults = {
        "HINT_LAYER": Key(2, least=0, most=64, help="Level of the features that are compared; 0 is the stem."),
        "INPUT_SIZE": Key([32, 32], least=8, most=4096, help=(
            "Image size for which shapes are computed if the data have none.")),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(100.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    def build(self, cfg):
        self.level = cfg.HINT_LAYER
        self.ce_weight, self.hint_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        student, teacher = self.feature_shapes(self.data_info.image_size or cfg.INPUT_SIZE)
        deepest = min(len(student), len(teacher)) - 1
        if not 0 <= self.level <= deepest:
            raise UserError(
                f"FITNET.HINT_LAYER: expected a level that both networks have, 0 to {deepest}; found {self.level}"
            )
        try:
            self.conv_reg = ConvRegressor(student[self.level], teacher[self.level])
        except ValueError as error:
            raise misfit(self, student, teacher, f"FITNET.HINT_LAYER {self.level}: {error}") from error

    def sample_losses(self, student, teacher, **batch):
        hint = self.conv_reg(student.features["feats"][self.level])
        return {"hint": self.hint_weight * fitnet_loss(hint, teacher.features["feats"][self.level])}
