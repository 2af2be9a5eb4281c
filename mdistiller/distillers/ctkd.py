"""Curriculum temperature (Li et al., AAAI 2023): the temperature is trained to increase the student's loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.norm import VectorBatchNorm
from mdistiller.losses.ctkd import INSTANCE_SMOOTHING, cosine_schedule, ctkd_loss, gradient_reversal

VARIANTS = ("global", "instance")


class GlobalTemperature(nn.Module):
    """One learned number (1,) for all samples, to which the sigmoid is applied later."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        return self.theta


class InstanceTemperature(nn.Module):
    """One number per sample (B,), to which the sigmoid is applied later, predicted from the logits of both networks.

    The input, for two layers (1x1 convolutions), are the probabilities that teacher and student give to the `top`
    classes that are most probable for the teacher. The last layer starts at 0, so that all samples start in the middle
    of the range. The input is detached, so that the student is not trained to change its temperature.
    """

    def __init__(self, num_classes: int, top: int = 100, hidden: int = 256):
        super().__init__()
        self.top = min(top, num_classes)
        self.conv1 = nn.Conv2d(2 * self.top, hidden, 1)
        self.bn = VectorBatchNorm(hidden)
        self.conv2 = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        p_student, p_teacher = logits_student.detach().softmax(dim=1), logits_teacher.detach().softmax(dim=1)
        likeliest, classes = p_teacher.topk(self.top, dim=1)
        x = torch.cat([likeliest, p_student.gather(1, classes)], dim=1).to(self.conv1.weight.dtype)
        x = F.relu(self.bn(self.conv1(x[:, :, None, None]).flatten(1)))
        return self.conv2(x[:, :, None, None]).flatten()


@register("CTKD")
class CTKD(Distiller):
    """Curriculum Temperature for Knowledge Distillation (Li et al., AAAI 2023, arXiv:2211.16231).

    The temperature is tau = T_START + T_END * sigmoid(u), so T_END is the length of its range and not the end. With
    VARIANT global, u is one parameter; with VARIANT instance, it is the output of a small network that reads both
    logits (written after a third-party copy of the released module, so details may differ). A gradient reversal makes
    these parameters increase the loss; its factor goes from LAMBDA_MAX to LAMBDA_MIN within LAMBDA_LOOPS epochs. The
    optimiser trains them in the same parameter group as the student, with weight decay.

    With logit standardization, the standardized logits are divided by tau and are also the input of the small network,
    since it chooses a temperature for the distributions that are distilled.
    """

    defaults = {
        "VARIANT": Key("global", choices=VARIANTS, help="One temperature, or one for each sample."),
        "T_START": Key(1.0, above=0, most=1e4, help="Lowest temperature."),
        "T_END": Key(20.0, least=-1e4, most=1e4, help="Length of the range of temperatures above T_START."),
        "LAMBDA_MAX": Key(0.0, least=-1e4, most=1e4, help="Factor of the reversed gradient at the start."),
        "LAMBDA_MIN": Key(-1.0, least=-1e4, most=1e4, help="Factor of the reversed gradient at the end."),
        "LAMBDA_LOOPS": Key(10, least=1, most=10**6, help="Epochs in which the factor changes; 5 on ImageNet."),
        "LOSS": {"CE_WEIGHT": weight_key(0.1, "the cross-entropy"), "KD_WEIGHT": weight_key(0.9)},
    }
    search = {"LOSS.KD_WEIGHT": 10, "T_END": 4}

    @classmethod
    def check(cls, cfg):
        if cfg.T_START + cfg.T_END <= 0:
            return "T_END", f"expected T_START + T_END greater than 0; found {cfg.T_START} and {cfg.T_END}"
        return None

    def build(self, cfg):
        self.t_start, self.t_end = cfg.T_START, cfg.T_END
        self.lambda_schedule = cfg.LAMBDA_MAX, cfg.LAMBDA_MIN, cfg.LAMBDA_LOOPS
        self.warmup = cfg.LAMBDA_LOOPS
        self.ce_weight, self.kd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.KD_WEIGHT
        if cfg.VARIANT == "global":
            self.smoothing, self.temperature = 0.0, GlobalTemperature()
        else:
            num_classes = self.dry_run()[0].logits.shape[1]
            self.smoothing, self.temperature = INSTANCE_SMOOTHING, InstanceTemperature(num_classes)

    def sample_losses(self, student, teacher, epoch, **batch):
        factor = cosine_schedule(epoch, *self.lambda_schedule)
        raw = gradient_reversal(self.temperature(student.logits, teacher.logits), factor)
        temperature = self.t_start + self.t_end * raw.sigmoid()
        loss = ctkd_loss(student.logits, teacher.logits, temperature, self.smoothing)
        return {"kd": self.kd_weight * loss}
