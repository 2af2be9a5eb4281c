"""Attention transfer (Zagoruyko and Komodakis, 2017)."""

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import shapes_of_stages, stages
from mdistiller.losses.at import at_loss


@register("AT")
class AttentionTransfer(Distiller):
    """Paying More Attention to Attention (Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928).

    weight * sum over stages of mean((q(student) - q(teacher))^2), where q is the normalised channel mean of feat^P.

    Departs from the paper as RepDistiller does: the squared difference is averaged over positions instead of taking
    its norm, which is why the weight is 1000.
    """

    defaults = {
        "P": Key(2, least=1, most=64, help="Power of the features in the attention maps."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1000.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    def build(self, cfg):
        self.p, self.ce_weight, self.attention_weight = cfg.P, cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        shapes_of_stages(self)

    def sample_losses(self, student, teacher, **batch):
        return {"attention": self.attention_weight * at_loss(stages(student), stages(teacher), self.p)}
