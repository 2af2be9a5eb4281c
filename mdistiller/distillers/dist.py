"""DIST: distillation by correlation instead of divergence (Huang et al., NeurIPS 2022)."""

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.dist import dist_losses


@register("DIST")
class DIST(Distiller):
    """Knowledge Distillation from A Stronger Teacher (Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv:2205.10536).

    CE + BETA * inter + GAMMA * intra: the student learns the teacher's relations between the classes of a sample and
    between the samples of a class, but not its probabilities. The intra-class term is a correlation over the batch, so
    it has no per-sample form and is not weighted; for a batch of one sample it is constant.

    Uncertain: the defaults, which are meant for CIFAR-100 (on ImageNet the temperature is 1). The released loss has
    BETA 1 and GAMMA 1; its files, which could not be checked, set an overall weight and the temperature.
    """

    defaults = {
        "BETA": weight_key(2.0, "the relation between classes"),
        "GAMMA": weight_key(2.0, "the relation within classes"),
        "TEMPERATURE": temperature_key(4.0),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy")},
    }
    search = {"BETA": 10, "GAMMA": 10, "TEMPERATURE": 4}
    batch_terms = ("intra",)

    def build(self, cfg):
        self.ce_weight, self.temperature = cfg.LOSS.CE_WEIGHT, cfg.TEMPERATURE
        self.beta, self.gamma = cfg.BETA, cfg.GAMMA

    def sample_losses(self, student, teacher, **batch):
        losses = dist_losses(student.logits, teacher.logits, self.temperature)
        return {"inter": self.beta * losses["inter"], "intra": self.gamma * losses["intra"]}
