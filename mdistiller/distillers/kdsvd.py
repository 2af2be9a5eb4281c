"""Self-supervised distillation by singular value decomposition (Lee et al., 2018)."""

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import misfit, stages
from mdistiller.errors import UserError
from mdistiller.losses.kdsvd import SIGNS, kdsvd_loss


@register("KDSVD")
class KDSVD(Distiller):
    """Self-supervised Knowledge Distillation using Singular Value Decomposition (Lee, Kim, Song, arXiv:1807.06819).

    weight * sum over consecutive stages of ||R(student) - R(teacher)||^2, with R_ab = exp(-(v_a - u_b)^2 / 8) for the
    right singular vectors v and u of the two stages, as in mdistiller. SIGN canonical makes the loss comparable between
    devices. POOL is an extension: it averages the larger of two maps of unequal width, which are otherwise an error.
    """

    defaults = {
        "K": Key(1, least=1, most=4096, help="Singular vectors of each map."),
        "SIGN": Key("library", choices=SIGNS, help=(
            "Signs of the singular vectors: those of the library, or the same ones on every device (canonical).")),
        "POOL": Key(False, help="Average the larger of two maps of unequal width, which is otherwise an error."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("feats",)

    def build(self, cfg):
        self.k, self.sign = cfg.K, cfg.SIGN
        self.ce_weight, self.relation_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        student, teacher = self.feature_shapes()
        widths = [(ours[3], theirs[3]) for ours, theirs in zip(student[1:], teacher[1:], strict=False)]
        if len(widths) < 2:
            raise misfit(self, student, teacher, "it relates consecutive stages and needs two or more besides the stem")
        if not cfg.POOL and any(ours != theirs for ours, theirs in widths):
            raise misfit(self, student, teacher, "widths differ stage by stage; KDSVD.POOL: True averages the larger")
        narrowest = min(min(pair) for pair in widths)
        if self.k > narrowest:
            raise UserError(f"KDSVD.K: expected at most {narrowest}, the width of the smallest map; found {self.k}")

    def sample_losses(self, student, teacher, **batch):
        loss = kdsvd_loss(stages(student), stages(teacher), self.k, self.sign)
        return {"singular": self.relation_weight * loss}
