"""Normalized knowledge distillation (Yang et al., ICCV 2023)."""

from torch import Tensor

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.dkd import split_target


def target_loss(logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
    """-p_teacher log p_student of the target class, at temperature 1: (B, C), (B, C), (B,) -> (B,), in nats."""
    log_p_student, log_p_teacher = (
        logits.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1) for logits in (logits_student, logits_teacher)
    )
    return -log_p_teacher.exp() * log_p_student


def nkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float, gamma: float
) -> Tensor:
    """Target term + gamma * T**2 * cross-entropy of the non-target distributions (Yang et al., arXiv:2303.13005).

    (B, C), (B, C), (B,) -> (B,), in nats. The non-target distributions are softmaxes over the other classes, so those
    of student and teacher both sum to one. Only this term has a temperature. Both terms are cross-entropies, not
    divergences, so they are not 0 for equal logits.
    """
    _, others_student = split_target(logits_student, target, temperature)
    _, others_teacher = split_target(logits_teacher, target, temperature)
    non_target = -(others_teacher.exp() * others_student).sum(dim=1)
    return target_loss(logits_student, logits_teacher, target) + gamma * temperature**2 * non_target


@register("NKD")
class NKD(Distiller):
    """From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., ICCV 2023, arXiv:2303.13005).

    NKD, the paper's method with a teacher; its self-distillation USKD is not included.
    CE + KD_WEIGHT * nkd; see `nkd_loss`. The defaults are those of the released loss and of ImageNet: T 1, GAMMA 1.5.
    The authors' CIFAR-100 file (ResNet34 -> ResNet18) has T 3 and GAMMA 3.5.

    Uncertain: T and GAMMA for the other pairs of CIFAR-100.
    """

    defaults = {
        "T": temperature_key(1.0, "the non-target classes"),
        "GAMMA": weight_key(1.5, "the non-target classes"),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "KD_WEIGHT": weight_key(1.0)},
    }

    def build(self, cfg):
        self.temperature, self.gamma = cfg.T, cfg.GAMMA
        self.ce_weight, self.kd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.KD_WEIGHT

    def sample_losses(self, student, teacher, target, **batch):
        loss = nkd_loss(student.logits, teacher.logits, target, self.temperature, self.gamma)
        return {"nkd": self.kd_weight * loss}
