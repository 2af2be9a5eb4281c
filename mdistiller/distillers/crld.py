"""Consistency-regularisation-based logit distillation (Zhang et al., ACM Multimedia 2024)."""

from mdistiller.config import Key, temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.crld import crld_losses


@register("CRLD")
class CRLD(Distiller):
    """Cross-View Consistency Regularisation for Knowledge Distillation (Zhang et al., ACM MM 2024, arXiv:2412.16493).

    CE_WEIGHT * CE of both views + WV_WEIGHT * (within_weak + within_strong) + CV_WEIGHT * (cross_weak + cross_strong);
    see `crld_losses`. If samples are weighted, each term uses the weight of the teacher's view. The keys and defaults
    are those of a public copy of the authors' code, whose ImageNet file has TEMPERATURE 1 and CE_WEIGHT 2. The strong
    view is that of MLD: two random operations and a cutout.

    Uncertain: whether the authors' strong view is the same, and whether the paper masks by view as that copy does.
    """

    defaults = {
        "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
        "WV_WEIGHT": weight_key(2.0, "the losses within a view"),
        "CV_WEIGHT": weight_key(0.5, "the losses across views"),
        "TEMPERATURE": temperature_key(4.0),
        "TAU_W": Key(0.9, least=0, most=1, help="Least confidence of the teacher in a weak view."),
        "TAU_S": Key(0.2, least=0, most=1, help="Least confidence of the teacher in a strong view."),
    }
    search = {"WV_WEIGHT": 10, "CV_WEIGHT": 10, "TEMPERATURE": 4}
    views = ("image", "image_strong")
    term_views = {"within_strong": "image_strong", "cross_strong": "image_strong"}
    rare_terms = ("within_weak", "within_strong", "cross_weak", "cross_strong")  # if the teacher is not confident
    standardizes = False  # the confidences are taken from the raw logits

    def build(self, cfg):
        self.ce_weight, self.temperature = cfg.CE_WEIGHT, cfg.TEMPERATURE
        self.thresholds = cfg.TAU_W, cfg.TAU_S
        self.factors = {"within": cfg.WV_WEIGHT, "cross": cfg.CV_WEIGHT}

    def sample_losses(self, student, teacher, **batch):
        logits = [output.logits for output in (*student, *teacher)]
        losses = crld_losses(*logits, self.temperature, *self.thresholds, self.logit_standardization)
        return {name: self.factors[name.split("_")[0]] * loss for name, loss in losses.items()}
