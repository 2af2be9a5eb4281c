"""Contrastive representation distillation (Tian et al., 2020)."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.errors import UserError

MAX_KEYS = 2**26  # random keys held at a time, 256 MiB


def nce_loss(scores: Tensor, num_data: int, eps: float = 1e-7) -> Tensor:
    """Noise-contrastive estimation (Tian et al., arXiv:1910.10699, section 3.1), one number per anchor.

    (B, K + 1) positive scores, the positive pair's in column 0 -> (B,), in nats, summed over the K noise samples. Noise
    is uniform over the `num_data` training images.
    """
    noise = (scores.shape[1] - 1) / num_data
    positive, negatives = scores[:, 0], scores[:, 1:]
    recognised = torch.log1p((noise + eps) / positive)  # -ln(positive / (positive + noise + eps))
    return recognised + torch.log1p((negatives + eps) / noise).sum(dim=1)


def crd_loss(scores_student: Tensor, scores_teacher: Tensor, num_data: int) -> Tensor:
    """Both directions, student's anchors on teacher's memory and teacher's on student's: 2 x (B, K + 1) -> (B,)."""
    return nce_loss(scores_student, num_data) + nce_loss(scores_teacher, num_data)


def similarities(embedding: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
    """Inner products of (B, d) with the rows of `memory` (N, d) that `contrast` (B, K + 1) names: (B, K + 1).

    The rows are not held for the backward pass as they stand, so `memory` may be written to afterwards.
    """
    batch, columns = contrast.shape
    num_data, dim = memory.shape
    if num_data * (batch + dim) < batch * columns * dim:  # all products and a copy are less than the rows gathered
        return (embedding @ memory.clone().mT).gather(1, contrast)
    return (memory[contrast] @ embedding[:, :, None]).squeeze(2)


class ContrastSampler(nn.Module):
    """Draws contrast indices on the device: `forward(index (B,))` -> (B, K + 1), the positive in column 0.

    K negatives from all images of other classes, uniformly and independently for each anchor; without replacement where
    a class leaves at least K images, else with. `relax` takes a random image of the anchor's class as the positive.
    """

    def __init__(self, targets: Tensor, num_negatives: int, relax: bool = False):
        super().__init__()
        self.num_negatives, self.relax = num_negatives, relax
        sizes = torch.bincount(targets)
        self.exhausted = num_negatives > len(targets) - int(sizes.max())  # for some class at least
        tables = {"targets": targets, "sizes": sizes, "starts": sizes.cumsum(0) - sizes, "by_class": targets.argsort()}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        target = self.targets[index]
        positive = self._same_class(target) if self.relax else index
        rows = max(MAX_KEYS // len(self.targets), 1)
        negatives = torch.cat([self._without_replacement(part) for part in target.split(rows)])
        if self.exhausted:
            others = len(self.targets) - self.sizes[target]
            negatives = torch.where((others < self.num_negatives)[:, None], self._with_replacement(target), negatives)
        return torch.cat([positive[:, None], negatives], dim=1)

    def _without_replacement(self, target):
        """The images with the least of random keys, where the class's own are out of reach: (B,) -> (B, K)."""
        keys = torch.rand(len(target), len(self.targets), device=target.device)
        keys.masked_fill_(self.targets == target[:, None], 2.0)
        return keys.topk(self.num_negatives, dim=1, largest=False, sorted=False).indices

    def _same_class(self, target):
        return self.by_class[self.starts[target] + self._below(self.sizes[target])]

    def _with_replacement(self, target):
        start, size = self.starts[target, None], self.sizes[target, None]
        place = self._below((len(self.targets) - size).expand(-1, self.num_negatives))
        return self.by_class[place + size * (place >= start)]  # skips the class's own run

    @staticmethod
    def _below(bound):
        """Whole numbers in [0, bound), uniform to one part in 10^12."""
        return torch.randint(2**62, bound.shape, device=bound.device) % bound


class Embedding(nn.Module):
    """Linear, then unit length."""

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(in_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=1)


@register("CRD")
class CRD(Distiller):
    """Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699).

    weight * mean(NCE(exp(teacher memory . student / T) / Z1) + NCE(exp(student memory . teacher / T) / Z2)), on linear
    embeddings of pooled features. Memories hold a running embedding of every training image; Z, the mean score of the
    first step times their number, stays.

    A batch may bring its own `contrast` (B, K + 1), indices with the positive in column 0; else they are drawn here
    from `index` and the training targets. NCE.K larger than the training set is cut to the images that every class
    leaves as negatives (small data). With several processes all keep the same memory and Z; the loss is of each one's
    batch. FEAT.STUDENT_DIM and TEACHER_DIM are read for compatibility: the networks tell.
    """

    defaults = {
        "MODE": Key("exact", choices=("exact", "relax"), help=(
            "Positive of an anchor: the image itself, or (relax) a random one of its class.")),
        "FEAT": {
            "DIM": Key(128, least=1, most=2**16, help="Width of the embeddings."),
            "STUDENT_DIM": Key(256, least=1, most=2**20, help="Without effect: the network tells its width."),
            "TEACHER_DIM": Key(256, least=1, most=2**20, help="Without effect: the network tells its width."),
        },
        "NCE": {
            "K": Key(16384, least=1, most=2**24, help="Negatives of each anchor."),
            "MOMENTUM": Key(0.5, least=0, below=1, help="Part of a remembered embedding that stays at each update."),
            "TEMPERATURE": Key(0.07, above=0, most=1e4, help="Temperature of the similarities."),
        },
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(0.8)},
    }
    inputs = "features"
    own_buffers = ("memory_", "sampler.")  # tens of MB that DDP need not send in every step

    def build(self, cfg):
        self.ce_weight, self.contrast_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.temperature, self.momentum = cfg.NCE.TEMPERATURE, cfg.NCE.MOMENTUM
        targets = self.data_info.targets
        self.num_data = self.data_info.num_train or (0 if targets is None else len(targets))
        if not self.num_data:
            raise UserError("CRD remembers every training image: the data must tell their number (num_train)")
        student, teacher = (output.features["pooled_feat"].shape[1] for output in self.dry_run())
        self.embed_s, self.embed_t = Embedding(student, cfg.FEAT.DIM), Embedding(teacher, cfg.FEAT.DIM)
        bound = math.sqrt(3 / cfg.FEAT.DIM)  # so that a row's norm is about 1
        for name in ("memory_v1", "memory_v2"):  # of the student, of the teacher
            self.register_buffer(name, torch.empty(self.num_data, cfg.FEAT.DIM).uniform_(-bound, bound))
        self.register_buffer("z", torch.full((2,), -1.0))  # Z1, Z2; negative until the first step
        self.sampler = None if targets is None else self._make_sampler(torch.as_tensor(targets), cfg)

    def _make_sampler(self, targets, cfg):
        negatives = len(targets) - int(torch.bincount(targets).max())
        if negatives == 0:
            raise UserError("CRD contrasts classes: the training images are all of one class")
        num_negatives = cfg.NCE.K if cfg.NCE.K <= len(targets) else negatives
        return ContrastSampler(targets, num_negatives, relax=cfg.MODE == "relax")

    def sample_losses(self, student, teacher, index=None, contrast=None, **batch):
        if index is None or (contrast is None and self.sampler is None):
            raise UserError(
                "CRD needs each image's `index` in the batch, and the training targets in data_info or `contrast`"
            )
        contrast = self.sampler(index) if contrast is None else contrast
        embeddings = self.embed_s(student.features["pooled_feat"]), self.embed_t(teacher.features["pooled_feat"])
        scores = [
            torch.exp(similarities(embedding, memory, contrast) / self.temperature)
            for embedding, memory in zip(embeddings, (self.memory_v2, self.memory_v1), strict=True)
        ]
        self._set_z(scores)
        loss = crd_loss(scores[0] / self.z[0], scores[1] / self.z[1], self.num_data)
        self._remember(index, embeddings)
        return {"contrast": self.contrast_weight * loss}

    @torch.no_grad()
    def _set_z(self, scores):
        """The first step's mean scores, over all processes, times the number of images; constant from then on."""
        sums = torch.stack([*(score.sum() for score in scores), scores[0].new_full((), scores[0].numel())])
        if _world_size() > 1:
            dist.all_reduce(sums)
        self.z = torch.where(self.z < 0, self.num_data * sums[:2] / sums[2], self.z)

    @torch.no_grad()
    def _remember(self, index, embeddings):
        """Move the rows of this batch's images, of all processes, towards their embeddings."""
        capacity = -(-self.cfg.SOLVER.BATCH_SIZE // _world_size())
        index, *embeddings = _of_all_processes(capacity, index, *embeddings)
        for memory, embedding in zip((self.memory_v1, self.memory_v2), embeddings, strict=True):
            moved = self.momentum * memory[index] + (1 - self.momentum) * embedding
            memory[index] = F.normalize(moved, dim=1)


def _world_size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_processes(capacity, *tensors):
    """Each of `tensors` (n, ...) with those of the other processes, whose n may differ but not exceed `capacity`.

    Shorter ones are filled up with copies of their first entry, which for rows to be written changes nothing.
    """
    if _world_size() == 1:
        return tensors
    gathered = []
    for tensor in tensors:
        missing = max(capacity - len(tensor), 0)
        filled = torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]).contiguous()
        pieces = [torch.empty_like(filled) for _ in range(_world_size())]
        dist.all_gather(pieces, filled)
        gathered.append(torch.cat(pieces))
    return gathered
