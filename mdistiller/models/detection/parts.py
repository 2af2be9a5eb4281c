"""Parts of a detector that differ from torchvision: pooling, anchors, losses, and a reproducible sampler.

The preset "detectron2" is that of the published results, "torchvision" that of torchvision's checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_area

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a box of 224 pixels is pooled from p4 (Lin et al., arXiv:1612.03144, Eq. 1)
FIRST_LEVEL, LAST_LEVEL = 2, 5
OUTPUT_SIZE = 7
STRIDES = (4, 8, 16, 32, 64)  # of p2 to p6
RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors


@dataclass(frozen=True)
class Preset:
    """Settings that differ between detectron2 and torchvision."""

    aligned: bool  # whether pooling shifts boxes by half a pixel
    sampling_ratio: int  # pooling averages this number of points per side of a bin; 0: one for each pixel
    level_epsilon: float  # added to the ratio of sizes (detectron2) or to its logarithm (torchvision)
    rounded_anchors: bool  # to integers, with strides computed from the sizes of the maps
    beta: float  # the smooth L1 loss of box offsets is linear above it; 0 means L1
    proposals: int  # kept per image in training
    stride_in_1x1: bool  # in bottlenecks


PRESETS = {
    "detectron2": Preset(True, 0, 1e-8, False, 0.0, 1000, True),
    "torchvision": Preset(False, 2, 1e-6, True, 1 / 9, 2000, False),
}


def box_levels(boxes: Tensor, preset: Preset) -> Tensor:
    """The level from which each box is pooled, 0 to 3 for p2 to p5: (N, 4) -> (N,) int64."""
    ratio = box_area(boxes).sqrt() / CANONICAL_SIZE
    if preset.rounded_anchors:
        level = torch.floor(CANONICAL_LEVEL + torch.log2(ratio) + preset.level_epsilon)
    else:
        level = torch.floor(CANONICAL_LEVEL + torch.log2(ratio + preset.level_epsilon))
    return level.clamp(FIRST_LEVEL, LAST_LEVEL).to(torch.int64) - FIRST_LEVEL


class LevelPooler(MultiScaleRoIAlign):
    """RoIAlign from the level that fits the size of a box, with the strides 4 to 32 of the levels.

    torchvision's class computes the scales from the first batch and keeps them, which is wrong if it has small images.
    The kernel is called directly, because with deterministic algorithms on CUDA `torchvision.ops.roi_align` compiles a
    slow replacement for minutes. The kernel's backward pass on CUDA adds in a random order.
    """

    def __init__(self, preset: Preset, levels: Sequence[str]):
        super().__init__(list(levels), OUTPUT_SIZE, preset.sampling_ratio)
        self.preset = preset
        self.scales = [1 / stride for stride in STRIDES[: len(levels)]]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list) -> Tensor:
        """Maps by level and boxes (n_i, 4) for each image -> (sum of n_i, C, 7, 7)."""
        maps, flat = [x[name] for name in self.featmap_names], torch.cat(boxes)
        image = torch.cat([torch.full_like(one[:, :1], number) for number, one in enumerate(boxes)])
        dtype = torch.promote_types(maps[0].dtype, torch.float32)  # bfloat16 is not precise enough for corners
        rois, levels = torch.cat([image, flat], dim=1).to(dtype), box_levels(flat, self.preset)
        pooled = torch.zeros(len(rois), maps[0].shape[1], *self.output_size, dtype=dtype, device=flat.device)
        for level, (one, scale) in enumerate(zip(maps, self.scales, strict=True)):
            rows = torch.where(levels == level)[0]
            part = torch.ops.torchvision.roi_align(
                one.to(dtype), rois[rows], scale, *self.output_size, self.sampling_ratio, self.preset.aligned
            )
            pooled = pooled.index_put((rows,), part.to(dtype))
        return pooled


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor of a lower precision as float32; others stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ProposalHead(RPNHead):
    """torchvision's head of a region proposal network; its results are float32 under autocast too.

    torchvision computes boxes in the precision of their offsets, and in bfloat16 a coordinate of 800 pixels is rounded
    to a multiple of 4.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [at_least_float32(one) for one in logits], [at_least_float32(one) for one in deltas]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's last layers of a detector; their results are float32 under autocast too, as for `ProposalHead`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


class Float32Anchors(AnchorGenerator):
    """torchvision's anchors, which are float32 also for feature maps of a lower precision."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)


class ExactAnchors(Float32Anchors):
    """Anchors as in detectron2: their sides are not rounded to integers, and the strides are those of the levels.

    torchvision divides the padded size of the images by that of the map, which for p6 is not 64 in most cases.
    """

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device="cpu"):
        sizes = torch.as_tensor(scales, dtype=torch.float64)
        ratios = torch.as_tensor(aspect_ratios, dtype=torch.float64)
        widths = (sizes / ratios.sqrt()[:, None]).flatten()
        heights = (sizes * ratios.sqrt()[:, None]).flatten()
        return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).to(dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        like = feature_maps[0]
        self.set_cell_anchors(torch.float32, like.device)
        grids = [feature.shape[-2:] for feature in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [(stride, stride) for stride in STRIDES[: len(grids)]]))
        return [anchors for _ in image_list.image_sizes]


def anchors_of(preset: Preset, sizes: Sequence[float]) -> AnchorGenerator:
    """Anchors with one size for each level p2 to p6, and three ratios."""
    kind = Float32Anchors if preset.rounded_anchors else ExactAnchors
    return kind(tuple((size,) for size in sizes), (RATIOS,) * len(sizes))


class SeededSampler(BalancedPositiveNegativeSampler):
    """Samples anchors or proposals for training, with a random generator for each image.

    `seeds`, one for each image of the next call, determine the choice, so that a resumed run gives the same weights and
    an image may be on any rank. Without seeds, torchvision samples with the global generator.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stream: int):
        super().__init__(batch_size_per_image, positive_fraction)
        self.stream, self.seeds = stream, None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if self.seeds is None:
            return super().__call__(matched_idxs)
        chosen = [self._choose(labels, seed) for labels, seed in zip(matched_idxs, self.seeds, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _choose(self, labels, seed):
        """Masks (n,) of sampled positives and negatives: those with the smallest of n random keys.

        Nothing is read back from the device.
        """
        generator = torch.Generator().manual_seed((2 * seed + self.stream) % 2**63)  # the same keys on every device
        keys = torch.rand(len(labels), generator=generator).to(labels.device, non_blocking=True)
        most = int(self.batch_size_per_image * self.positive_fraction)
        positive = self._smallest(keys, labels >= 1, most)
        negative = self._smallest(keys, labels == 0, self.batch_size_per_image - positive.sum())
        return positive, negative

    @staticmethod
    def _smallest(keys, among, most):
        order = keys.masked_fill(~among, 2.0).argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return among & (rank < most)


def offsets_loss(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 losses of box offsets (n, 4), or of L1 losses if `beta` is 0."""
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="sum")


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, beta: float) -> dict[str, Tensor]:
    """The two losses of sampled proposals (Ren et al., arXiv:1506.01497): {"cls", "box"}.

    `logits` (N, C+1) have the background first; `deltas` (N, 4 (C+1)) are four box offsets for each class; `labels`
    (N,) are 0 for the background; `targets` (N, 4) are encoded. "cls" is the mean cross-entropy. "box" is the sum over
    foreground proposals of the loss of the offsets of the true class, divided by N. For N = 0 both are 0, with a
    gradient of 0.
    """
    number = max(len(labels), 1)
    rows = torch.where(labels > 0)[0]
    chosen = deltas.reshape(len(labels), logits.shape[1], 4)[rows, labels[rows]]
    if not len(labels):
        return {"cls": logits.sum(), "box": deltas.sum()}
    return {"cls": F.cross_entropy(logits, labels), "box": offsets_loss(chosen, targets[rows], beta) / number}


class ExactRPN(RegionProposalNetwork):
    """A region proposal network with detectron2's losses: L1 and sums over sampled anchors, divided by the configured
    number of anchors (per image, times images). torchvision divides by the number of anchors that were sampled.
    """

    @classmethod
    def like(cls, rpn: RegionProposalNetwork) -> "ExactRPN":
        """An `ExactRPN` with the parts and settings of a network of torchvision."""
        matcher, sampler = rpn.proposal_matcher, rpn.fg_bg_sampler
        return cls(
            rpn.anchor_generator, rpn.head, matcher.high_threshold, matcher.low_threshold,
            sampler.batch_size_per_image, sampler.positive_fraction, rpn._pre_nms_top_n, rpn._post_nms_top_n,
            rpn.nms_thresh, rpn.score_thresh,
        )

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        positive, negative = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        expected = len(labels) * self.fg_bg_sampler.batch_size_per_image
        rows, labels, targets = torch.where(positive)[0], torch.cat(labels), torch.cat(regression_targets)
        box = offsets_loss(pred_bbox_deltas[rows], targets[rows], beta=0.0)
        each = F.binary_cross_entropy_with_logits(objectness.flatten(), labels.clamp_min(0), reduction="none")
        return (each * (positive | negative)).sum() / expected, box / expected
