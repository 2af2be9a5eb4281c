"""Relational knowledge distillation (Park et al., 2019)."""

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.rkd import rkd_loss


@register("RKD")
class RKD(Distiller):
    """Relational Knowledge Distillation (Park, Kim, Lu, Cho, CVPR 2019, arXiv:1904.05068).

    weight * (DISTANCE_WEIGHT * distances + ANGLE_WEIGHT * angles), each a smooth L1 loss on pooled features. With
    several processes, the batch is that of the process.
    """

    defaults = {
        "DISTANCE_WEIGHT": weight_key(25.0, "the distances"),
        "ANGLE_WEIGHT": weight_key(50.0, "the angles"),
        "PDIST": {
            "EPSILON": Key(1e-12, above=0, most=1, help="Lower bound of squared distances."),
            "SQUARED": Key(False, help="Compare squared distances."),
        },
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    search = {"DISTANCE_WEIGHT": 10, "ANGLE_WEIGHT": 10}
    inputs = "features"
    needs = ("pooled_feat",)

    def build(self, cfg):
        self.weights = cfg.DISTANCE_WEIGHT, cfg.ANGLE_WEIGHT
        self.squared, self.eps = cfg.PDIST.SQUARED, cfg.PDIST.EPSILON
        self.ce_weight, self.relation_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT

    def sample_losses(self, student, teacher, **batch):
        pooled = student.features["pooled_feat"], teacher.features["pooled_feat"]
        return {"relation": self.relation_weight * rkd_loss(*pooled, *self.weights, self.squared, self.eps)}
