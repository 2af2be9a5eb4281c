"""Refined logit distillation (Sun et al., ICCV 2025)."""

from torch import Tensor

from mdistiller.config import temperature_key, warm_up_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.dkd import split_target
from mdistiller.functional import kl_divergence, warm_up

MASKED = -1e9  # as released; finite, so that a row with all classes masked is uniform for both networks


def rld_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    confidence_temperature: float,
) -> Tensor:
    """alpha * confidence + beta * correlation (Sun et al., arXiv:2408.07703): (B, C), (B, C), (B,) -> (B,), in nats.

    The confidence term is the KL divergence from the teacher's (p_max, 1 - p_max), with p_max its largest probability,
    to the student's (p_target, 1 - p_target). The correlation term is the KL divergence over the classes to which the
    teacher gives a smaller probability than to the target, renormalised, so that the teacher's mistakes are left out;
    it is 0 if there are no such classes. Each term is multiplied by the square of its temperature.
    """
    confidence_student, _ = split_target(logits_student, target, confidence_temperature)
    confidence_teacher, _ = split_target(logits_teacher, logits_teacher.argmax(dim=1), confidence_temperature)
    confidence = confidence_temperature**2 * kl_divergence(confidence_student, confidence_teacher)
    mask = logits_teacher >= logits_teacher.gather(1, target[:, None])
    log_p_student, log_p_teacher = (
        (logits / temperature).masked_fill(mask, MASKED).log_softmax(dim=1)
        for logits in (logits_student, logits_teacher)
    )
    return alpha * confidence + beta * temperature**2 * kl_divergence(log_p_student, log_p_teacher)


@register("RLD")
class RLD(Distiller):
    """Knowledge Distillation with Refined Logits (Sun, Chen, Lyu, Chen, Chen, Wang, ICCV 2025, arXiv:2408.07703).

    CE + min(epoch / WARMUP, 1) * rld; see `rld_loss`. Keys and defaults are those of the authors' code, in which the
    confidence term has its own temperature ALPHA_T of 1; the command in its documentation sets ALPHA_T equal to T.

    Uncertain: ALPHA, BETA and the temperatures for each pair of the paper's tables; the authors' files lack them.
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "ALPHA": weight_key(1.0, "the confidence term"),
        "BETA": weight_key(8.0, "the term of the classes below the target"),
        "ALPHA_T": temperature_key(1.0, "the confidence term"),
        "T": temperature_key(4.0, "the term of the classes below the target"),
        "WARMUP": warm_up_key(20),
    }

    def build(self, cfg):
        self.ce_weight, self.warmup = cfg.CE_WEIGHT, cfg.WARMUP
        self.settings = cfg.ALPHA, cfg.BETA, cfg.T, cfg.ALPHA_T

    def sample_losses(self, student, teacher, target, epoch, **batch):
        loss = rld_loss(student.logits, teacher.logits, target, *self.settings)
        return {"rld": warm_up(epoch, self.warmup) * loss}
