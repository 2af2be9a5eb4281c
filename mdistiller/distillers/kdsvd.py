"""Self-supervised distillation by singular value decomposition (Lee et al., 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import feat_shapes, misfit, stages
from mdistiller.errors import UserError

SPARE = 3  # how many more of the student's vectors the teacher's may choose from
SIGNS = ("library", "canonical")


def right_singular_vectors(feat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest `count` singular values (B, n), and right vectors (B, W, n), of a map seen as (B, C * H, W).

    n is less than `count` where the matrix has fewer. At least float32. Signs are the library's choice. The gradient of
    a sample whose singular values coincide, as those of a dead map do, is not finite and left out.
    """
    matrix = feat.to(torch.promote_types(feat.dtype, torch.float32)).flatten(1, 2)
    matrix = torch.where(matrix.isfinite(), matrix, 0.0)  # a diverging run fails by its loss, not here
    if matrix.requires_grad:
        matrix.register_hook(_finite_samples)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    return values[:, :count], vectors.mT[..., :count]


def _finite_samples(gradient):
    return torch.where(gradient.isfinite().all(dim=(1, 2), keepdim=True), gradient, 0.0)


def _largest_positive(vectors):
    """(B, W, n) with each column's sign such that its entry of largest magnitude is positive."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def _aligned(student, teacher):
    """For each of the teacher's vectors (B, W, k) the student's that is closest up to its sign, with that sign."""
    cosine = student.detach().mT @ teacher
    closest = cosine.abs() == cosine.abs().amax(dim=1, keepdim=True)
    return student @ torch.where(closest, cosine.sign(), 0.0)


def _relation(vectors, previous):
    """(B, W, k), (B, W', k) of consecutive stages -> (B, W, W', k)."""
    return torch.exp(-(vectors[:, :, None] - previous[:, None]).square() / 8)


def relation_loss(levels: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Squared difference of the relations between consecutive stages, summed: -> (B,).

    By stage: student's right vectors (B, W, m), teacher's (B, W, k) and the teacher's singular values (B, k).
    """
    total, previous = 0.0, None
    for student, teacher, values in levels:
        scale = F.normalize(values, dim=1)[:, None]
        current = scale * _aligned(student, teacher), scale * teacher
        if previous is not None:
            student, teacher = (_relation(*pair) for pair in zip(current, previous, strict=True))
            total = total + (student - teacher).square().sum(dim=(1, 2, 3))
        previous = current
    return total


def _of_width(feat, width):
    return feat if feat.shape[3] == width else F.adaptive_avg_pool2d(feat, width)


def kdsvd_loss(student_feats: list[Tensor], teacher_feats: list[Tensor], k: int = 1, sign: str = "library") -> Tensor:
    """How the main singular vectors of one stage relate to those of the next (Lee et al., arXiv:1807.06819), squared.

    Lists of (B, C, H, W), paired in order, the wider of a pair averaged to W x W -> (B,), a sum over entries. Radial
    basis functions of the differences of the first `k` vectors, weighed by their singular values. No gradient reaches
    the teacher. A vector's sign is arbitrary: the student's follow the teacher's, whose are the linear algebra
    library's choice, as in the reference, or with "canonical" make the entry of largest magnitude positive, so that
    devices and versions agree.
    """
    levels = []
    for student, teacher in zip(student_feats, teacher_feats, strict=False):
        width = min(student.shape[3], teacher.shape[3])
        student, teacher = _of_width(student, width), _of_width(teacher, width)
        values, vectors = right_singular_vectors(teacher.detach(), k)
        if sign == "canonical":
            vectors = _largest_positive(vectors)
        levels.append((right_singular_vectors(student, k + SPARE)[1], vectors, values))
    return relation_loss(levels)


@register("KDSVD")
class KDSVD(Distiller):
    """Self-supervised Knowledge Distillation using Singular Value Decomposition (Lee, Kim, Song, arXiv:1807.06819).

    weight * sum over consecutive stages of ||R(student) - R(teacher)||^2, R_ab = exp(-(v_a - u_b)^2 / 8) for the right
    singular vectors v, u of the two stages, as in mdistiller. SIGN canonical makes the loss comparable between devices;
    POOL averages the larger of two maps of unequal width (an extension), which are refused otherwise.
    """

    defaults = {
        "K": Key(1, least=1, most=4096, help="Singular vectors of each map."),
        "SIGN": Key("library", choices=SIGNS, help=(
            "Signs of the singular vectors: as the library gives them, or (canonical) the same on every device.")),
        "POOL": Key(False, help="Average the larger of two maps of unequal width, instead of refusing them."),
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(1.0)},
    }
    inputs = "features"

    def build(self, cfg):
        self.k, self.sign = cfg.K, cfg.SIGN
        self.ce_weight, self.relation_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        student, teacher = feat_shapes(self)
        widths = [(ours[3], theirs[3]) for ours, theirs in zip(student[1:], teacher[1:], strict=False)]
        if len(widths) < 2:
            raise misfit(self, student, teacher, "it relates stages, two at least without the stem")
        if not cfg.POOL and any(ours != theirs for ours, theirs in widths):
            raise misfit(self, student, teacher, "widths differ stage by stage; KDSVD.POOL: True averages the larger")
        narrowest = min(min(pair) for pair in widths)
        if self.k > narrowest:
            raise UserError(f"KDSVD.K: expected at most {narrowest}, the width of the smallest map; found {self.k}")

    def sample_losses(self, student, teacher, **batch):
        loss = kdsvd_loss(stages(student), stages(teacher), self.k, self.sign)
        return {"singular": self.relation_weight * loss}
