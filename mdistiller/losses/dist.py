"""DIST: distillation by correlation instead of divergence (Huang et al., NeurIPS 2022); the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision

EPS = 1e-8  # as released: added to the product of the norms


@in_full_precision
def pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of x and y along `dim`, which is removed; 0 if one of them is constant."""
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    return (x * y).sum(dim) / (x.norm(dim=dim) * y.norm(dim=dim) + EPS)


@in_full_precision
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
