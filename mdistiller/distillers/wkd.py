"""Distillation by Wasserstein distance between class probabilities (Lv et al., NeurIPS 2024)."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, temperature_key, weight_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.last_map import classifier_of
from mdistiller.distillers.ls import standardize
from mdistiller.distillers.nkd import target_loss
from mdistiller.errors import UserError

COST_MATRICES = ("cka", "fc")


def cka(features: Tensor) -> Tensor:
    """Linear centred kernel alignment of every pair of classes: (C, n, D), n samples of each class -> (C, C) in [0, 1].

    The k-th samples of two classes form a pair. The result is 0 if all samples of a class are equal.
    """
    centred = features - features.mean(dim=1, keepdim=True)
    kernels = F.normalize((centred @ centred.mT).flatten(1), dim=1)  # (C, n * n)
    return kernels @ kernels.mT


def transport_cost(similarity: Tensor, sharpness: float) -> Tensor:
    """1 - exp(-sharpness (1 - similarity)) (Lv et al., arXiv:2412.08139), at least 0 and 0 on the diagonal: (C, C)."""
    distance = (1 - similarity).fill_diagonal_(0)
    return (1 - torch.exp(-sharpness * distance)).clamp_min(0)


def sinkhorn_distance(log_p: Tensor, log_q: Tensor, cost: Tensor, reg: float, iterations: int) -> Tensor:
    """Cost of the regularised optimal transport from p to q after a number of Sinkhorn iterations.

    Log-probabilities (B, C), -inf for classes that both leave out, and one cost matrix (C, C) -> (B,). The last
    iteration fits p. The scaling vectors are stored as logarithms, and their products with the kernel are computed
    relative to the largest entry of each row, so that no tensor (B, C, C) is needed.
    """
    kernel = torch.exp(-cost / reg)
    log_u = torch.zeros_like(log_p).masked_fill(log_p.isneginf(), -math.inf)
    for _ in range(iterations):
        log_v = log_q - _log_product(log_u, kernel)
        log_u = log_p - _log_product(log_v, kernel.mT)
    (u, top_u), (v, top_v) = _relative(log_u), _relative(log_v)
    return ((u @ (kernel * cost)) * v).sum(dim=1) * torch.exp(top_u + top_v).squeeze(1)


def _relative(log_x):
    top = log_x.detach().amax(dim=1, keepdim=True)
    return torch.exp(log_x - top), top


def _log_product(log_x, kernel):
    """log(exp(log_x) @ kernel), without overflow."""
    x, top = _relative(log_x)
    return torch.log(x @ kernel) + top


def wkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    cost: Tensor,
    temperature: float,
    reg: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Wasserstein distance of the non-target probabilities (Lv et al., arXiv:2412.08139): (B, C), (B, C), (B,) -> (B,).

    `cost` (C, C) is the cost of moving probability from one class to another. The target's probability is left out for
    both networks, and the others are renormalised. There is no factor temperature**2. `reg` and `iterations` are those
    of `sinkhorn_distance`.
    """
    log_p, log_q = (
        (logits / temperature).scatter(1, target[:, None], -math.inf).log_softmax(dim=1)
        for logits in (logits_student, logits_teacher)
    )
    return sinkhorn_distance(log_p, log_q, cost, reg, iterations)


@register("WKD", "WKD-L", "WKD_L")
class WKD(Distiller):
    """Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation (Lv et al., NeurIPS 2024).

    The logit method WKD-L of arXiv:2412.08139.
    CE + target + WKD_LOGIT_WEIGHT * wkd: the target term of NKD, and the Wasserstein distance between the probabilities
    of the other classes with cost 1 - exp(-COST_MATRIX_SHARPEN * (1 - similarity)). The weight is constant until
    COSINE_DECAY_EPOCH and then follows a half cosine to 0 at the last epoch. COST_MATRIX chooses the similarity of two
    classes: "cka" is the centred kernel alignment of the teacher's pooled features, "fc" the cosine between the rows of
    its classifier. COST_MATRIX_PATH replaces it by a file of the distances (1 - similarity), a tensor (C, C).

    Departs from the released code, which computes the CKA matrix from training images before training. Here the first
    SAMPLES images of each class are collected in the first epoch, which uses "fc" meanwhile; so does a class with fewer
    than two images afterwards. The released code takes every position of the last map as a sample, here a sample is the
    pooled map of an image, so the matrices differ; COST_MATRIX_PATH accepts theirs. Sinkhorn runs in the log domain.

    WKD_LOGIT_WEIGHT 600, TEMPERATURE 8 and the decay from epoch 150 are the authors' settings for resnet32x4 ->
    resnet8x4 on CIFAR-100, for which they also set SOLVER.NESTEROV True.
    """

    defaults = {
        "TEMPERATURE": temperature_key(8.0),
        "COST_MATRIX": Key("cka", choices=COST_MATRICES, help=(
            "Similarity of classes: that of the teacher's features (cka), or of the rows of its classifier (fc).")),
        "COST_MATRIX_PATH": Key("", path=True, help="File with a tensor of (C, C) distances; replaces COST_MATRIX."),
        "COST_MATRIX_SHARPEN": Key(1.0, least=0, most=1e4, help="Factor of the distance in the cost."),
        "SAMPLES": Key(50, least=2, most=10**5, help="Training images of each class from which cka is computed."),
        "SINKHORN": {
            # with costs of at most 1, exp(-cost / LAMBDA) stays far above the smallest float32 number
            "LAMBDA": Key(0.05, least=0.02, most=1e4, help="Strength of the regularisation of the transport plan."),
            "ITER": Key(10, least=1, most=10**4, help="Iterations of Sinkhorn's algorithm."),
        },
        "LOSS": {
            "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
            "WKD_LOGIT_WEIGHT": weight_key(600.0),
            "COSINE_DECAY_EPOCH": Key(150, least=0, most=10**6, help="Epoch after which the weight falls to 0."),
        },
    }
    inputs = "features"

    def build(self, cfg):
        self.ce_weight, self.wkd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.WKD_LOGIT_WEIGHT
        self.decay_epoch, self.last_epoch = cfg.LOSS.COSINE_DECAY_EPOCH, self.cfg.SOLVER.EPOCHS
        self.settings = cfg.TEMPERATURE, cfg.SINKHORN.LAMBDA, cfg.SINKHORN.ITER
        self.sharpness = cfg.COST_MATRIX_SHARPEN
        if cfg.COST_MATRIX_PATH:
            similarity = 1 - self._distances_of(cfg.COST_MATRIX_PATH)
        else:
            similarity = self._classifier_cosines()
        self.register_buffer("cost", transport_cost(similarity, self.sharpness))
        self.gathers = cfg.COST_MATRIX == "cka" and not cfg.COST_MATRIX_PATH
        self.gathered = False
        if self.gathers:
            width = self.dry_run()[1].features["pooled_feat"].shape[1]
            classes = len(similarity)
            # one slot more than SAMPLES, which takes all further images
            self.register_buffer("samples", similarity.new_zeros(classes, cfg.SAMPLES + 1, width))
            self.register_buffer("counts", torch.zeros(classes, dtype=torch.long, device=similarity.device))

    def weight_at(self, epoch: int) -> float:
        """Weight of the distance in an epoch, counted from 1."""
        if epoch <= self.decay_epoch:
            return self.wkd_weight
        progress = (epoch - self.decay_epoch) / max(self.last_epoch - self.decay_epoch, 1)
        return self.wkd_weight * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    def sample_losses(self, student, teacher, target, epoch, **batch):
        if self.gathers and epoch == 1:
            self._gather(teacher.features["pooled_feat"], target)
        elif self.gathers and not self.gathered:
            self._use_gathered()
        logits = student.logits, teacher.logits
        if self.logit_standardization:
            logits = tuple(map(standardize, logits))
        distance = wkd_loss(*logits, target, self.cost, *self.settings)
        return {"target": target_loss(*logits, target), "wkd": self.weight_at(epoch) * distance}

    @torch.no_grad()
    def _gather(self, features, target):
        earlier = (target[:, None] == target).tril(-1).sum(dim=1)  # images of the same class before it in this batch
        slot = (self.counts[target] + earlier).clamp_max(self.samples.shape[1] - 1)
        self.samples[target, slot] = features.to(self.samples.dtype)
        self.counts.index_add_(0, target, torch.ones_like(target))

    @torch.no_grad()
    def _use_gathered(self):
        """Compute the cost from the collected samples; a class with fewer than SAMPLES images repeats them."""
        kept = self.counts.clamp(1, self.samples.shape[1] - 1)
        columns = torch.arange(self.samples.shape[1] - 1, device=kept.device) % kept[:, None]
        samples = self.samples.gather(1, columns[:, :, None].expand(-1, -1, self.samples.shape[2]))
        known = self.counts >= 2
        similarity = torch.where(known[:, None] & known, cka(samples), self._classifier_cosines().to(samples))
        self.cost.copy_(transport_cost(similarity, self.sharpness))
        self.gathered = True

    def _classifier_cosines(self):
        classifier, classes = classifier_of(self.teacher), self.data_info.num_classes
        if classifier is None or len(classifier.weight) != classes:
            raise UserError(
                f"{self.method}: teacher {self.cfg.DISTILLER.TEACHER} does not end in a linear layer of {classes} "
                "classes, from which the costs are computed; set WKD.COST_MATRIX_PATH"
            )
        weight = F.normalize(classifier.weight.detach(), dim=1)
        return weight @ weight.mT

    def _distances_of(self, path):
        reference, classes = next(self.teacher.parameters()), self.data_info.num_classes
        try:
            distances = torch.load(Path(path), map_location=reference.device, weights_only=True)
        except Exception as error:  # a damaged file can raise many kinds of exceptions
            raise UserError(f"WKD.COST_MATRIX_PATH: {path}: cannot be read ({type(error).__name__})") from None
        if not isinstance(distances, Tensor) or distances.shape != (classes, classes):
            raise UserError(f"WKD.COST_MATRIX_PATH: {path}: expected a tensor of shape ({classes}, {classes})")
        return distances.to(reference.dtype)
