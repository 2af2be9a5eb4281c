"""DIST: distillation by correlation instead of divergence (Huang et al., NeurIPS 2022)."""

from torch import Tensor

from mdistiller.config import temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register

EPS = 1e-8  # as released: added to the product of the norms


def pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of x and y along `dim`, which is removed; 0 if one of them is constant."""
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    return (x * y).sum(dim) / (x.norm(dim=dim) * y.norm(dim=dim) + EPS)


def dist_losses(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> dict[str, Tensor]:
    """One minus the correlations of the probabilities (Huang et al., arXiv:2205.10536), in [0, 2] * T**2.

    Logits are (B, C). The probabilities are taken at temperature T, and both losses are multiplied by T**2, as
    released:
      inter (B,)   correlation of the rows of student and teacher: the classes of one sample
      intra ()     correlation of their columns: one class over the batch, averaged over the classes
    """
    p_student, p_teacher = ((logits / temperature).softmax(dim=1) for logits in (logits_student, logits_teacher))
    return {
        "inter": temperature**2 * (1 - pearson(p_student, p_teacher, dim=1)),
        "intra": temperature**2 * (1 - pearson(p_student, p_teacher, dim=0)).mean(),
    }


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
    batch_terms = ("intra",)

    def build(self, cfg):
        self.ce_weight, self.temperature = cfg.LOSS.CE_WEIGHT, cfg.TEMPERATURE
        self.beta, self.gamma = cfg.BETA, cfg.GAMMA

    def sample_losses(self, student, teacher, **batch):
        losses = dist_losses(student.logits, teacher.logits, self.temperature)
        return {"inter": self.beta * losses["inter"], "intra": self.gamma * losses["intra"]}
