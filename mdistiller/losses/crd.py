"""Contrastive representation distillation (Tian et al., 2020): the loss."""

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def nce_loss(scores: Tensor, num_data: int, eps: float = 1e-7) -> Tensor:
    """Noise-contrastive estimation (Tian et al., arXiv:1910.10699, section 3.1), one loss per anchor.

    `scores` (B, K + 1) are greater than 0, with that of the positive pair in column 0 -> (B,), in nats, summed over
    the K noise samples. The noise distribution is uniform over the `num_data` training images. `eps` is added to the
    denominators, as in the reference.
    """
    noise = (scores.shape[1] - 1) / num_data
    positive, negatives = scores[:, 0], scores[:, 1:]
    recognised = torch.log1p((noise + eps) / positive)  # -ln(positive / (positive + noise + eps))
    return recognised + torch.log1p((negatives + eps) / noise).sum(dim=1)


@in_full_precision
def crd_loss(scores_student: Tensor, scores_teacher: Tensor, num_data: int) -> Tensor:
    """`nce_loss` in both directions: (B, K + 1), (B, K + 1) -> (B,).

    The student's scores compare its embeddings with the teacher's memory, the teacher's scores the reverse.
    """
    return nce_loss(scores_student, num_data) + nce_loss(scores_teacher, num_data)


@in_full_precision
def similarities(embedding: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
    """Inner products (B, K + 1) of embeddings (B, d) with the rows of `memory` (N, d) at `contrast` (B, K + 1).

    The backward pass does not read `memory` itself, so it may be written to afterwards.
    """
    batch, columns = contrast.shape
    num_data, dim = memory.shape
    if num_data * (batch + dim) < batch * columns * dim:  # all products take less memory than the gathered rows
        return (embedding @ memory.clone().mT).gather(1, contrast)
    return (memory[contrast] @ embedding[:, :, None]).squeeze(2)
