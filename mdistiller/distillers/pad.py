"""Prime-aware adaptive distillation (Zhang et al., ECCV 2020), a reconstruction, as there is no official code."""

from torch import nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.norm import VectorBatchNorm
from mdistiller.losses.pad import pad_loss

VARIANCES = ("dimension", "sample")


@register("PAD")
class PAD(Distiller):
    """Prime-Aware Adaptive Distillation (Zhang et al., ECCV 2020, arXiv:2008.01458), a reconstruction.

    CE_WEIGHT * CE + FEAT_WEIGHT * pad_loss, on the embeddings (the inputs of the classifiers). A branch of
    BRANCH_LAYERS linear layers, each with batch norm, predicts the log-variance from the student's embedding: one for
    each dimension or one for each sample (VARIANCE). With DETACH_BRANCH the student gets no gradient through the
    branch. In the first WARMUP epochs the variance is 1, so the loss is the mean squared error. If the widths of the
    embeddings differ, a linear layer maps the student's to the teacher's. Branch and layer are trained together with
    the student, but are not part of it.

    Uncertain: there is no public official code. Details that the paper does not give follow a third-party
    implementation or are a guess; each of them is a key.
    """

    defaults = {  # all uncertain, since no code was published
        "VARIANCE": Key("dimension", choices=VARIANCES, help="One variance per dimension, or one per sample."),
        "BRANCH_LAYERS": Key(1, choices=(1, 2), help="Linear layers of the branch that predicts the variance."),
        "DETACH_BRANCH": Key(False, help="Whether the student gets no gradient through the branch."),
        "EPS": Key(1e-5, least=0, most=1, help="Added to the variance."),
        "WARMUP": Key(10, least=0, most=10**6, help="Number of first epochs in which the variance is 1."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10}
    inputs = "features"
    needs = ("pooled_feat",)

    def build(self, cfg):
        self.eps, self.warmup, self.detach_branch = cfg.EPS, cfg.WARMUP, cfg.DETACH_BRANCH
        self.ce_weight, self.feat_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        student, teacher = (output.features["pooled_feat"].shape[1] for output in self.dry_run())
        self.projection = nn.Linear(student, teacher) if student != teacher else nn.Identity()
        out = teacher if cfg.VARIANCE == "dimension" else 1
        hidden = [nn.Linear(student, teacher), VectorBatchNorm(teacher), nn.ReLU()] if cfg.BRANCH_LAYERS == 2 else []
        self.branch = nn.Sequential(*hidden, nn.Linear(teacher if hidden else student, out), VectorBatchNorm(out))

    def sample_losses(self, student, teacher, epoch, **batch):
        embedding = student.features["pooled_feat"]
        log_variance = self.branch(embedding.detach() if self.detach_branch else embedding)
        eps = self.eps
        if epoch <= self.warmup:  # times 0 and not left out: DDP needs every parameter in every step
            log_variance, eps = 0 * log_variance, 0.0
        loss = pad_loss(self.projection(embedding), teacher.features["pooled_feat"], log_variance, eps)
        return {"pad": self.feat_weight * loss}
