"""Contrastive representation distillation (Tian et al., 2020)."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distributed import sum_over_ranks, world_size
from mdistiller.errors import UserError
from mdistiller.losses.crd import crd_loss, similarities
from mdistiller.losses.crd import nce_loss as nce_loss

MAX_KEYS = 2**26  # random keys held at a time, 256 MiB


class ContrastSampler(nn.Module):
    """Draws contrast indices on the device: `forward(index (B,))` -> (B, K + 1), with the positive in column 0.

    The K negatives are drawn uniformly from all images of other classes, independently for each anchor: without
    replacement if there are at least K of these images, else with replacement. With `relax` the positive is a random
    image of the anchor's class, perhaps the anchor itself.
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
        """The K images with the smallest random keys; those of the anchor's class are excluded: (B,) -> (B, K)."""
        keys = torch.rand(len(target), len(self.targets), device=target.device)
        keys.masked_fill_(self.targets == target[:, None], 2.0)
        return keys.topk(self.num_negatives, dim=1, largest=False, sorted=False).indices

    def _same_class(self, target):
        return self.by_class[self.starts[target] + self._below(self.sizes[target])]

    def _with_replacement(self, target):
        start, size = self.starts[target, None], self.sizes[target, None]
        place = self._below((len(self.targets) - size).expand(-1, self.num_negatives))
        return self.by_class[place + size * (place >= start)]  # skips the images of the anchor's own class

    @staticmethod
    def _below(bound):
        """Integers in [0, bound), uniform up to a relative error of 10^-12."""
        return torch.randint(2**62, bound.shape, device=bound.device) % bound


class Embedding(nn.Module):
    """A linear layer whose output is scaled to unit length."""

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(in_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=1)


@register("CRD")
class CRD(Distiller):
    """Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699).

    weight * mean(NCE(exp(teacher memory . student / T) / Z1) + NCE(exp(student memory . teacher / T) / Z2)), on linear
    embeddings of pooled features. The memories hold a running embedding of every training image. Z1 and Z2 are the mean
    scores of the first step times the number of training images, and stay constant afterwards.

    A batch may contain `contrast` (B, K + 1), indices with the positive in column 0; otherwise they are drawn from
    `index` and the training targets. For small data sets, an NCE.K larger than the training set is reduced to the
    number of images that every class leaves for its negatives. All processes of a run keep the same memories and Z, and
    each computes the loss of its own batch. FEAT.STUDENT_DIM and FEAT.TEACHER_DIM are accepted for compatibility and
    have no effect: the widths are taken from the networks.
    """

    defaults = {
        "MODE": Key("exact", choices=("exact", "relax"), help=(
            "Positive of an anchor: the image itself (exact), or a random image of its class (relax).")),
        "FEAT": {
            "DIM": Key(128, least=1, most=2**16, help="Width of the embeddings."),
            "STUDENT_DIM": Key(256, least=1, most=2**20, help="Without effect: the width is taken from the network."),
            "TEACHER_DIM": Key(256, least=1, most=2**20, help="Without effect: the width is taken from the network."),
        },
        "NCE": {
            "K": Key(16384, least=1, most=2**24, help="Negatives of each anchor."),
            "MOMENTUM": Key(0.5, least=0, below=1, help="Part of an embedding in memory that is kept at an update."),
            "TEMPERATURE": Key(0.07, above=0, most=1e4, help="Temperature of the similarities."),
        },
        "LOSS": {"CE_WEIGHT": weight_key(1.0, "the cross-entropy"), "FEAT_WEIGHT": weight_key(0.8)},
    }
    search = {"LOSS.FEAT_WEIGHT": 10, "NCE.TEMPERATURE": 4}
    inputs = "features"
    needs = ("pooled_feat", "index")
    own_buffers = ("memory_", "sampler.")  # tens of MB, which DDP would send in every step

    def build(self, cfg):
        self.ce_weight, self.contrast_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.FEAT_WEIGHT
        self.temperature, self.momentum = cfg.NCE.TEMPERATURE, cfg.NCE.MOMENTUM
        targets = self.data_info.targets
        self.num_data = self.data_info.num_train or (0 if targets is None else len(targets))
        if not self.num_data:
            raise UserError("CRD stores an embedding of every training image: data_info must have num_train")
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
            raise UserError("CRD needs training images of at least two classes; found one class")
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
        """In the first step, set Z to the mean score over all processes times the number of images."""
        sums = torch.stack([*(score.sum() for score in scores), scores[0].new_full((), scores[0].numel())])
        sums = sum_over_ranks(sums)
        self.z = torch.where(self.z < 0, self.num_data * sums[:2] / sums[2], self.z)

    @torch.no_grad()
    def _remember(self, index, embeddings):
        """Move the rows of this batch's images, of all processes, towards their embeddings."""
        capacity = -(-self.cfg.SOLVER.BATCH_SIZE // world_size())
        index, *embeddings = _of_all_processes(capacity, index, *embeddings)
        for memory, embedding in zip((self.memory_v1, self.memory_v2), embeddings, strict=True):
            moved = self.momentum * memory[index] + (1 - self.momentum) * embedding
            memory[index] = F.normalize(moved, dim=1)


def _of_all_processes(capacity, *tensors):
    """Each of `tensors` (n, ...) concatenated over all processes; n may differ between them, up to `capacity`.

    Shorter tensors are filled up with copies of their first entry; writing such a row twice changes nothing.
    """
    if world_size() == 1:
        return tensors
    gathered = []
    for tensor in tensors:
        missing = max(capacity - len(tensor), 0)
        filled = torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]).contiguous()
        pieces = [torch.empty_like(filled) for _ in range(world_size())]
        dist.all_gather(pieces, filled)
        gathered.append(torch.cat(pieces))
    return gathered
