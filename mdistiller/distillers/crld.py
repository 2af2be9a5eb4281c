"""Consistency-regularisation-based logit distillation (Zhang et al., ACM Multimedia 2024)."""

from torch import Tensor

from mdistiller.config import Key, temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.kd import kd_loss
from mdistiller.distillers.ls import standardize as standardized


def crld_losses(
    student_weak: Tensor,
    student_strong: Tensor,
    teacher_weak: Tensor,
    teacher_strong: Tensor,
    temperature: float,
    tau_weak: float,
    tau_strong: float,
    standardize: bool = False,
) -> dict[str, Tensor]:
    """KL divergences within and across two views (Zhang et al., arXiv:2412.16493), each (B,), in nats times T**2.

    All logits are (B, C). `within_weak` and `within_strong` compare student and teacher on the same view. `cross_weak`
    compares the student's strong view with the teacher's weak view, and `cross_strong` the student's weak view with the
    teacher's strong view. A sample has losses within views only if the teacher's largest probability on the weak view
    is at least `tau_weak`, and losses across views only if that on the strong view is at least `tau_strong`; otherwise
    they are 0. `standardize` (logit standardization) applies to the divergences, not to these confidences.
    """
    within, across = (
        (logits.softmax(dim=1).amax(dim=1) >= tau).to(logits.dtype)
        for logits, tau in ((teacher_weak, tau_weak), (teacher_strong, tau_strong))
    )
    if standardize:
        student_weak, student_strong, teacher_weak, teacher_strong = map(
            standardized, (student_weak, student_strong, teacher_weak, teacher_strong)
        )
    return {
        "within_weak": within * kd_loss(student_weak, teacher_weak, temperature),
        "within_strong": within * kd_loss(student_strong, teacher_strong, temperature),
        "cross_weak": across * kd_loss(student_strong, teacher_weak, temperature),
        "cross_strong": across * kd_loss(student_weak, teacher_strong, temperature),
    }


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
    views = ("image", "image_strong")
    term_views = {"within_strong": "image_strong", "cross_strong": "image_strong"}
    standardizes = False  # the confidences are taken from the raw logits

    def build(self, cfg):
        self.ce_weight, self.temperature = cfg.CE_WEIGHT, cfg.TEMPERATURE
        self.thresholds = cfg.TAU_W, cfg.TAU_S
        self.factors = {"within": cfg.WV_WEIGHT, "cross": cfg.CV_WEIGHT}

    def sample_losses(self, student, teacher, **batch):
        logits = [output.logits for output in (*student, *teacher)]
        losses = crld_losses(*logits, self.temperature, *self.thresholds, self.logit_standardization)
        return {name: self.factors[name.split("_")[0]] * loss for name, loss in losses.items()}
