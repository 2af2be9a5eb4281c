"""Similarity-preserving distillation (Tung and Mori, 2019)."""

from mdistiller.config import weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.sp import sp_loss


@register("SP")
class SimilarityPreserving(Distiller):
    """Similarity-Preserving Knowledge Distillation (Tung, Mori, ICCV 2019, arXiv:1907.09682).

    weight * mean((G(teacher) - G(student))^2), where G are the row-normalised similarities of the last `feats` within
    the batch. With several processes, the batch is that of the process.
    """

    defaults = {"LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(3000.0)}}
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    def build(self, cfg):
        self.ce_weight, self.similarity_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.feature_shapes()

    def sample_losses(self, student, teacher, **batch):
        loss = sp_loss(student.features["feats"][-1], teacher.features["feats"][-1])
        return {"similarity": self.similarity_weight * loss}
