"""Distillation by Wasserstein distance between class probabilities (Lv et al., NeurIPS 2024)."""

import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, temperature_key, weight_key
from mdistiller.config.length import num_epochs
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.features import name_of
from mdistiller.distillers.last_map import classifier_of
from mdistiller.distillers.ls import standardize
from mdistiller.errors import UserError
from mdistiller.hooks import before_loading
from mdistiller.losses.nkd import target_loss
from mdistiller.losses.wkd import cka, transport_cost, wkd_loss
from mdistiller.models.base import any_parameter

log = logging.getLogger("mdistiller")
COST_MATRICES = ("cka", "fc")
MOST_VALUES = 2**30  # of the samples that costs are measured on: 4 GiB


@register("WKD", "WKD-L", "WKD_L")
class WKD(Distiller):
    """Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation (Lv et al., NeurIPS 2024).

    The logit method WKD-L of arXiv:2412.08139.
    CE + target + WKD_LOGIT_WEIGHT * wkd: the target term of NKD, and the Wasserstein distance between the probabilities
    of the other classes with cost 1 - exp(-COST_MATRIX_SHARPEN * (1 - similarity)). The weight is constant until
    COSINE_DECAY_EPOCH and then follows a half cosine to 0 at the last epoch. COST_MATRIX chooses the similarity of two
    classes: "cka" is the centred kernel alignment of the teacher's features, "fc" the cosine between the rows of
    its classifier. COST_MATRIX_PATH replaces it by a file of the distances (1 - similarity), a tensor (C, C).

    The CKA matrix is measured when a run starts, as the authors do before training. Each position of the teacher's last
    map (the last of `feats`) is a sample, from training images without augmentation, and the k-th samples of two
    classes form a pair. At most SAMPLES images of each class are used, all 500 of CIFAR-100, and fewer if the samples
    would take more than 4 GiB. "fc" is used without a data set to measure the matrix, as in a user's training loop.

    Departs from the released code: Sinkhorn runs in the log domain.

    WKD_LOGIT_WEIGHT 600, TEMPERATURE 8 and the decay from epoch 150 are the authors' settings for resnet32x4 ->
    resnet8x4 on CIFAR-100, for which they also set SOLVER.NESTEROV True.
    """

    defaults = {
        "TEMPERATURE": temperature_key(8.0),
        "COST_MATRIX": Key("cka", choices=COST_MATRICES, help=(
            "Similarity of classes: that of the teacher's features (cka), or of the rows of its classifier (fc).")),
        "COST_MATRIX_PATH": Key("", path=True, help="File with a tensor of (C, C) distances; replaces COST_MATRIX."),
        "COST_MATRIX_SHARPEN": Key(1.0, least=0, most=1e4, help="Factor of the distance in the cost."),
        "SAMPLES": Key(500, least=2, most=10**5, help=(
            "Greatest number of training images of each class from which cka is computed.")),
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
    search = {"LOSS.WKD_LOGIT_WEIGHT": 10, "TEMPERATURE": 4}
    inputs = "features"  # of the teacher, where the costs are measured, and its classifier
    needs = ("classifier",)
    standardizes = False  # it reads features too, and standardizes its logits itself

    def build(self, cfg):
        self.ce_weight, self.wkd_weight = cfg.LOSS.CE_WEIGHT, cfg.LOSS.WKD_LOGIT_WEIGHT
        self.decay_epoch, self.last_epoch = cfg.LOSS.COSINE_DECAY_EPOCH, num_epochs(self.cfg.SOLVER)
        self.settings = cfg.TEMPERATURE, cfg.SINKHORN.LAMBDA, cfg.SINKHORN.ITER
        self.sharpness = cfg.COST_MATRIX_SHARPEN
        if cfg.COST_MATRIX_PATH:
            similarity = 1 - self._distances_of(cfg.COST_MATRIX_PATH)
        else:
            similarity = self._classifier_cosines()
        self.register_buffer("cost", transport_cost(similarity, self.sharpness))
        self.measures = cfg.COST_MATRIX == "cka" and not cfg.COST_MATRIX_PATH
        self.most_images = cfg.SAMPLES
        self.map_shape = _samples_of(self.dry_run()[1]).shape[1:] if self.measures else None  # (positions, D)
        before_loading(self, _without_gathered)

    @torch.no_grad()
    def prepare(self, data):
        """Measure the class costs on the teacher's last maps of training images, if COST_MATRIX is cka."""
        if not self.measures:
            return
        index = _first_of_each_class(data.info.targets, len(self.cost), min(
            self.most_images, MOST_VALUES // (len(self.cost) * self.map_shape.numel())))
        if not len(index):
            log.warning("WKD: a class has no training images; the costs are those of the teacher's classifier")
            return
        features, start = self.cost.new_empty(len(index), *self.map_shape), 0
        for batch in data.plain_batches(index):
            samples = _samples_of(self.run_teacher(batch["image"]))
            features[start:start + len(samples)] = samples
            start += len(samples)
        self.cost.copy_(transport_cost(cka(features.view(len(self.cost), -1, self.map_shape[1])), self.sharpness))
        log.info("WKD: class costs from %d training images of each class", len(index) // len(self.cost))

    def weight_at(self, epoch: int) -> float:
        """Weight of the distance in an epoch, counted from 1."""
        if epoch <= self.decay_epoch:
            return self.wkd_weight
        progress = (epoch - self.decay_epoch) / max(self.last_epoch - self.decay_epoch, 1)
        return self.wkd_weight * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    def sample_losses(self, student, teacher, target, epoch, **batch):
        logits = student.logits, teacher.logits
        if self.logit_standardization:
            logits = tuple(map(standardize, logits))
        distance = wkd_loss(*logits, target, self.cost, *self.settings)
        return {"target": target_loss(*logits, target), "wkd": self.weight_at(epoch) * distance}

    def _num_classes(self):
        return self.data_info.num_classes or self.dry_run()[1].logits.shape[1]

    def _classifier_cosines(self):
        classifier, classes = classifier_of(self.teacher), self._num_classes()
        if classifier is None or len(classifier.weight) != classes:
            raise UserError(
                f"{self.method}: teacher {name_of(self, 'teacher')} does not end in a linear layer of {classes} "
                "classes, from which the costs are computed; set WKD.COST_MATRIX_PATH"
            )
        weight = F.normalize(classifier.weight.detach(), dim=1)
        return weight @ weight.mT

    def _distances_of(self, path):
        reference, classes = any_parameter(self.teacher, self.student), self._num_classes()
        try:
            distances = torch.load(Path(path), map_location=reference.device, weights_only=True)
        except Exception as error:  # a damaged file can raise many kinds of exceptions
            raise UserError(f"WKD.COST_MATRIX_PATH: {path}: cannot be read ({type(error).__name__})") from None
        if not isinstance(distances, Tensor) or distances.shape != (classes, classes):
            raise UserError(f"WKD.COST_MATRIX_PATH: {path}: expected a tensor of shape ({classes}, {classes})")
        return distances.to(reference.dtype)


def _samples_of(output):
    """Samples (B, P, D) of an output: the positions of the last map, or the one pooled feature."""
    feats = output.features.get("feats")
    if feats and feats[-1].dim() == 4:
        return feats[-1].flatten(2).mT
    return output.features["pooled_feat"][:, None]


def _first_of_each_class(targets, num_classes, most):
    """Positions of the first images of each class, class by class, as many of each; none where a class has none."""
    counts = torch.bincount(targets, minlength=num_classes)
    number = min(most, int(counts.min()))
    order, starts = targets.argsort(stable=True), counts.cumsum(0) - counts
    return order[(starts[:, None] + torch.arange(number)).flatten()].numpy()


def _without_gathered(module, state_dict, prefix, *_):
    """Drop what earlier versions saved beside the costs: the samples that they gathered in the first epoch.

    Raises ValueError for a state in which the costs are still those of the classifier, which that epoch used meanwhile.
    """
    gathered = [state_dict.pop(prefix + name, None) is not None for name in ("samples", "counts")]
    cost = state_dict.get(prefix + "cost")
    same = cost is not None and cost.shape == module.cost.shape and torch.allclose(cost.to(module.cost), module.cost)
    if any(gathered) and same:
        raise ValueError("it is of an earlier version of WKD, which measured the class costs after the first epoch, "
                         "and was stopped before")
