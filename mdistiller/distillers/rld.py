"""Refined logit distillation (Sun et al., ICCV 2025)."""

from mdistiller.config import temperature_key, warm_up_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.functional import warm_up
from mdistiller.losses.rld import rld_loss


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
    search = {"ALPHA": 10, "BETA": 10, "T": 4}

    def build(self, cfg):
        self.ce_weight, self.warmup = cfg.CE_WEIGHT, cfg.WARMUP
        self.settings = cfg.ALPHA, cfg.BETA, cfg.T, cfg.ALPHA_T

    def sample_losses(self, student, teacher, target, epoch, **batch):
        loss = rld_loss(student.logits, teacher.logits, target, *self.settings)
        return {"rld": warm_up(epoch, self.warmup) * loss}
