"""Scale-decoupled distillation (Wei, Luo, Luo, CVPR 2024): the loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.functional import in_full_precision


def multi_scale_logits(feature_map: Tensor, classifier: nn.Module, scales: list[int]) -> Tensor:
    """Logits of each cell of a map that is pooled to scale x scale, for all scales in order.

    (B, D, H, W) -> (B, cells, C), where `cells` is the sum of scale**2.
    """
    cells = [F.adaptive_avg_pool2d(feature_map, scale).flatten(2) for scale in scales]
    rows = torch.cat(cells, dim=2).mT
    return classifier(rows.to(next(classifier.parameters(), rows).dtype))


@in_full_precision
def sdd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    divergence: Callable[[Tensor, Tensor, Tensor], Tensor],
    complementary_weight: float,
) -> Tensor:
    """Mean over the cells of a logit loss, (B, cells, C), (B, cells, C), (B,) -> (B,) (Wei et al., arXiv:2403.13512).

    Cell 0 is the whole map. A cell is consistent, with weight 1, if the teacher is right on both the cell and the whole
    map, or wrong on both. It is complementary, with weight `complementary_weight`, if the teacher is right on only one
    of them. `divergence` is the loss of a cell: logits (n, C) of student and teacher and targets (n,) -> (n,).
    """
    batch, cells, _ = logits_teacher.shape
    repeated = target[:, None].expand(batch, cells)
    loss = divergence(logits_student.flatten(0, 1), logits_teacher.flatten(0, 1), repeated.flatten())
    right = logits_teacher.argmax(dim=2) == repeated
    complementary = right != right[:, :1]
    weight = 1.0 + (complementary_weight - 1.0) * complementary.to(loss.dtype)
    return (weight * loss.view(batch, cells)).mean(dim=1)
