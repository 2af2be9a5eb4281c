"""Scale-decoupled distillation (Wei, Luo, Luo, CVPR 2024)."""

from torch import Tensor

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import register
from mdistiller.distillers.last_map import LastMapDistiller
from mdistiller.functional import standardize, warm_up
from mdistiller.losses.dkd import dkd_loss
from mdistiller.losses.kd import kd_loss
from mdistiller.losses.nkd import nkd_loss
from mdistiller.losses.sdd import multi_scale_logits, sdd_loss

LOSSES = ("kd", "dkd", "nkd")


@register("SDD", "SDD_KD", "SDD-KD")
class SDD(LastMapDistiller):
    """Scale Decoupled Distillation (Wei, Luo, Luo, CVPR 2024, arXiv:2403.13512).

    Distils the logits of parts of the image: the last map is averaged over the cells of M x M grids, and each cell is
    classified. LOSS names the loss of a cell: kd (weights and temperature of KD), dkd (the settings of DKD, but with a
    warm-up of WARMUP epochs) or nkd (weight of the cross-entropy, temperature and warm-up of DKD, and its BETA as
    GAMMA, as in the authors' code); see `sdd_loss`. The norm of the gradient is clipped at CLIP_NORM, unless
    SOLVER.CLIP_NORM is set. The authors' code calls the three variants SDD_KD, SDD_DKD and SDD_NKD and takes M from the
    command line: [1, 2] for the pairs of similar architecture in its scripts, [1, 2, 4] for the others.

    Departs from that code: grids are pooled from the map itself and not from the map pooled to 4 x 4, which is the same
    if the size is a multiple of 4.

    Uncertain: COMPLEMENTARY_WEIGHT 2 is a constant of the code and was not compared with the paper.
    """

    defaults = {
        "LOSS": Key("kd", choices=LOSSES, help=(
            "Loss of each cell, with the settings of KD for kd and of DKD for the others.")),
        "M": Key([1, 2, 4], least=1, most=64, help="Number of rows and columns of each grid; the first is 1."),
        "COMPLEMENTARY_WEIGHT": weight_key(
            2.0, "cells where the teacher is right, but not on the whole map, or the reverse"),
        "WARMUP": Key(1, least=0, most=10**6, help="Epochs in which the loss rises linearly, with LOSS dkd."),
        "CLIP_NORM": Key(40.0, least=0, most=1e9, help="Maximum norm of the gradient; SOLVER.CLIP_NORM overrides it."),
    }
    search = {"KD.LOSS.KD_WEIGHT": 10, "COMPLEMENTARY_WEIGHT": 10}
    reads = ("KD", "DKD")  # the settings of its LOSS
    standardizes = False  # its logits are those of the cells of a map

    @classmethod
    def check(cls, cfg):
        if not cfg.M or cfg.M[0] != 1:
            return "M", f"expected grid sizes that begin with 1, such as [1, 2, 4]; found {list(cfg.M)}"
        return None

    def build(self, cfg):
        self.check_maps()
        self.clip_norm = cfg.CLIP_NORM
        self.scales, self.complementary_weight = list(cfg.M), cfg.COMPLEMENTARY_WEIGHT
        if cfg.LOSS == "kd":
            node = self.cfg.KD
            self.ce_weight, self.weight, self.warmup = node.LOSS.CE_WEIGHT, node.LOSS.KD_WEIGHT, 0
            self.cell_loss, self.settings = kd_loss, (node.TEMPERATURE,)
            return
        node = self.cfg.DKD
        self.ce_weight, self.weight = node.CE_WEIGHT, 1.0
        if cfg.LOSS == "dkd":
            self.warmup, self.cell_loss, self.settings = cfg.WARMUP, dkd_loss, (node.ALPHA, node.BETA, node.T)
        else:
            self.warmup, self.cell_loss, self.settings = node.WARMUP, nkd_loss, (node.T, node.BETA)

    def divergence(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss (n,) of n cells with logits (n, C) and targets (n,), which the loss of KD does not read."""
        labels = () if self.cell_loss is kd_loss else (target,)
        return self.cell_loss(student, teacher, *labels, *self.settings)

    def sample_losses(self, student, teacher, target, epoch, **batch):
        logits = [
            multi_scale_logits(output.features["map"], classifier, self.scales)
            for output, classifier in zip((student, teacher), self.classifiers, strict=True)
        ]
        if self.logit_standardization:
            logits = [standardize(cells.flatten(0, 1)).view_as(cells) for cells in logits]
        loss = sdd_loss(*logits, target, self.divergence, self.complementary_weight)
        return {"sdd": self.weight * warm_up(epoch, self.warmup) * loss}
