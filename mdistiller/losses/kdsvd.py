"""Self-supervised distillation by singular value decomposition (Lee et al., 2018): the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.functional import in_full_precision

SPARE = 3  # extra vectors of the student among which the teacher's vectors find their partners
SIGNS = ("library", "canonical")


@in_full_precision
def right_singular_vectors(feat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest `count` singular values (B, n) and right vectors (B, W, n) of a map, read as (B, C * H, W).

    n is less than `count` if the matrix has fewer. Entries that are not finite count as 0. The result is at least
    float32, and the signs of the vectors are those of the linear algebra library. If singular values of a sample
    coincide (those of a map of zeros do), its gradient is not finite and is replaced by 0.
    """
    matrix = feat.flatten(1, 2)
    matrix = torch.where(matrix.isfinite(), matrix, 0.0)  # a diverging run should fail at its loss, not here
    if matrix.requires_grad:
        matrix.register_hook(_finite_samples)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    return values[:, :count], vectors.mT[..., :count]


def _finite_samples(gradient):
    return torch.where(gradient.isfinite().all(dim=(1, 2), keepdim=True), gradient, 0.0)


def _largest_positive(vectors):
    """(B, W, n), with the sign of each column chosen so that its entry of largest magnitude is positive."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def _aligned(student, teacher):
    """For each of the teacher's vectors (B, W, k), the closest vector of the student, with the sign that fits best."""
    cosine = student.detach().mT @ teacher
    closest = cosine.abs() == cosine.abs().amax(dim=1, keepdim=True)
    return student @ torch.where(closest, cosine.sign(), 0.0)


def _relation(vectors, previous):
    """Relation of the vectors of consecutive stages: (B, W, k), (B, W', k) -> (B, W, W', k)."""
    return torch.exp(-(vectors[:, :, None] - previous[:, None]).square() / 8)


@in_full_precision
def relation_loss(levels: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Squared difference of the relations between consecutive stages, summed: -> (B,).

    `levels` has for each stage the student's right vectors (B, W, m), the teacher's right vectors (B, W, k) and the
    teacher's singular values (B, k).
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


@in_full_precision
def kdsvd_loss(student_feats: list[Tensor], teacher_feats: list[Tensor], k: int = 1, sign: str = "library") -> Tensor:
    """Squared difference of the relations between consecutive stages (Lee et al., arXiv:1807.06819).

    Lists of (B, C, H, W), paired in order -> (B,), a sum over entries; if the widths of a pair differ, the wider map is
    averaged to W x W, W the width of the other. A relation is a radial basis function of the differences between the
    first `k` right singular vectors of two stages, weighted by the teacher's singular values. The teacher gets no
    gradient. The sign of a singular vector is arbitrary, so the student's signs follow the teacher's. With `sign`
    "library" those are the signs of the linear algebra library, as in the reference; with "canonical" the entry of
    largest magnitude is positive, so that devices and library versions agree. Raises ValueError for another `sign`.
    """
    if sign not in SIGNS:
        raise ValueError(f"unknown sign {sign!r}: expected one of {', '.join(SIGNS)}")
    levels = []
    for student, teacher in zip(student_feats, teacher_feats, strict=False):
        width = min(student.shape[3], teacher.shape[3])
        student, teacher = _of_width(student, width), _of_width(teacher, width)
        values, vectors = right_singular_vectors(teacher.detach(), k)
        if sign == "canonical":
            vectors = _largest_positive(vectors)
        levels.append((right_singular_vectors(student, k + SPARE)[1], vectors, values))
    return relation_loss(levels)
