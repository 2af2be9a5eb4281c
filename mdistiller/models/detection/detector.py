"""Faster R-CNN with a feature pyramid, with access to the logits of given proposals, as distillation needs it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from mdistiller.models.detection import LEVELS
from mdistiller.models.detection.backbones import build_backbone
from mdistiller.models.detection.parts import (
    OUTPUT_SIZE,
    PRESETS,
    BoxPredictor,
    ExactRPN,
    LevelPooler,
    ProposalHead,
    SeededSampler,
    anchors_of,
    box_losses,
)

DIVISOR = 32  # the sides of padded images are multiples of it
PIXELS = {  # order of channels, mean and standard deviation of pixels 0..255
    "rgb": ("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # torchvision's classifiers
    "bgr": ("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),  # the ResNets of MSRA
    "released": ("rgb", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),  # a mistake of the published student
}
RPN_DRAWS, ROI_DRAWS = range(2)


class Sampled(NamedTuple):
    """The proposals on which a student is trained, for its teacher; the background has label 0."""

    proposals: list[Tensor]  # (n_i, 4) for each image, corners in pixels of the batch
    image_sizes: list[tuple[int, int]]  # (height, width) before padding
    target: Tensor  # (N,)
    image_index: Tensor  # (N,), the image of each proposal
    deltas: Tensor  # (N, 4 (C+1)), the student's box offsets


class Pass(NamedTuple):
    """The result of `train_pass`: logits (N, C+1), {"feats": [p2..p6]}, the four losses and the sampled proposals."""

    logits: Tensor
    features: dict[str, Any]
    task_losses: dict[str, Tensor]
    sampled: Sampled


class Detector(nn.Module):
    """A FasterRCNN of torchvision with C classes, which have the numbers 1..C in C+1 logits; 0 is the background.

    Images are a list of (3, H, W) tensors, RGB, 0..255, already resized. `pixels` names their normalisation, a key of
    `PIXELS`. `width` multiplies the channels of the backbone.
    """

    def __init__(self, name: str, num_classes: int, preset: str = "detectron2", norm: str = "frozen",
                 width: float = 1.0, channels: int = 256, head_channels: int = 1024, freeze: int = 2,
                 pixels: str | None = None, anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512), **rcnn):
        super().__init__()
        choices = PRESETS[preset]
        self.preset, self.num_classes = choices, num_classes
        self.order, mean, std = PIXELS[pixels or default_pixels(name, preset)]
        backbone = build_backbone(name, norm, width, channels, choices.stride_in_1x1, freeze)
        rcnn = {"rpn_post_nms_top_n_train": choices.proposals, **rcnn}
        anchors = anchors_of(choices, anchor_sizes)
        self.model = FasterRCNN(
            backbone, rpn_anchor_generator=anchors, box_roi_pool=LevelPooler(choices, LEVELS),
            box_head=TwoMLPHead(channels * OUTPUT_SIZE**2, head_channels),
            box_predictor=BoxPredictor(head_channels, num_classes + 1),
            rpn_head=ProposalHead(channels, anchors.num_anchors_per_location()[0]),  # last: the order of random weights
            image_mean=list(mean), image_std=list(std), _skip_resize=True, **rcnn,
        )
        if not choices.rounded_anchors:
            self.model.rpn = ExactRPN.like(self.model.rpn)
            _initialise_heads(self.model.roi_heads)
        for part, stream in ((self.model.rpn, RPN_DRAWS), (self.model.roi_heads, ROI_DRAWS)):
            drawn = part.fg_bg_sampler
            part.fg_bg_sampler = SeededSampler(drawn.batch_size_per_image, drawn.positive_fraction, stream)

    # --- images ----------------------------------------------------------------------------------------------------

    def batch(self, images: Sequence[Tensor]) -> ImageList:
        """The normalised images, padded with 0 to the right and below: tensors (B, 3, H', W') and image_sizes."""
        return self.normalise(stack(images))

    def normalise(self, batch: ImageList) -> ImageList:
        """Normalise raw pixels of `stack`, which several networks can share; the padding stays 0."""
        raw = batch.tensors.float()
        if self.order == "bgr":
            raw = raw.flip(1)
        mean, std = (raw.new_tensor(values)[:, None, None] for values in
                     (self.model.transform.image_mean, self.model.transform.image_std))
        inside = padding_mask(batch, raw.device)
        return ImageList(((raw - mean) / std).masked_fill(~inside, 0.0), batch.image_sizes)

    # --- the four calls --------------------------------------------------------------------------------------------

    def features(self, images: ImageList | Sequence[Tensor]) -> list[Tensor]:
        """The maps p2..p6, each (B, C, H / stride, W / stride), for a result of `batch` or a list of images."""
        return list(self._maps(self._batched(images)).values())

    def train_pass(self, images, targets: list[dict], seeds: Sequence[int] | None = None) -> Pass:
        """A forward pass of torchvision's network in train mode that also returns the proposals and their logits.

        `targets` contain boxes (n, 4), corners in pixels, and labels (n,) from 1. `seeds`, one for each image,
        determine the sampled anchors and proposals.
        """
        images = self._batched(images)
        heads, maps = self.model.roi_heads, self._maps(images)
        self._seed(seeds)
        proposals, rpn_losses = self.model.rpn(images, maps, targets)
        proposals, _, labels, offsets = heads.select_training_samples(proposals, targets)
        logits, deltas = self._heads(maps, proposals, images.image_sizes)
        target = torch.cat(labels)
        losses = box_losses(logits, deltas, target, torch.cat(offsets), self.preset.beta)
        losses |= {"rpn_cls": rpn_losses["loss_objectness"], "rpn_box": rpn_losses["loss_rpn_box_reg"]}
        image_index = torch.cat([torch.full_like(one, number) for number, one in enumerate(labels)])
        sampled = Sampled(proposals, images.image_sizes, target, image_index, deltas)
        return Pass(logits, {"feats": list(maps.values())}, losses, sampled)

    def box_logits(self, features: Sequence[Tensor], proposals: list[Tensor], image_sizes) -> tuple[Tensor, Tensor]:
        """Logits (N, C+1) and box offsets (N, 4 (C+1)) for proposals (n_i, 4) of each image, from maps p2..p5 or p6."""
        return self._heads(dict(zip(LEVELS, features, strict=False)), proposals, image_sizes)

    @torch.no_grad()
    def detect(self, images, sizes: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Tensor]]:
        """Detections of each image, in eval mode: boxes (n, 4), scores (n,) and labels (n,), best first.

        Boxes are in pixels of the images, or of images with the given `sizes` (height, width). Of a list of images,
        only those are computed together that have the same padded size, because features depend on the padding.
        """
        if isinstance(images, ImageList):
            return self._detect(images, sizes or images.image_sizes)
        together: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            together.setdefault(tuple(-(-length // DIVISOR) for length in image.shape[-2:]), []).append(place)
        found: dict[int, dict[str, Tensor]] = {}
        for places in together.values():
            batch = self.batch([images[place] for place in places])
            chosen = [sizes[place] for place in places] if sizes else batch.image_sizes
            found |= zip(places, self._detect(batch, chosen), strict=True)
        return [found[place] for place in range(len(images))]

    def forward(self, images, targets: list[dict] | None = None, seeds: Sequence[int] | None = None):
        """`train_pass` in train mode, `detect` in eval mode."""
        return self.train_pass(images, targets, seeds) if self.training else self.detect(images)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _batched(self, images):
        return images if isinstance(images, ImageList) else self.batch(images)

    def _detect(self, batch, sizes):
        maps = self._maps(batch)
        proposals, _ = self.model.rpn(batch, maps)
        found, _ = self.model.roi_heads(maps, proposals, batch.image_sizes)
        return self.model.transform.postprocess(found, batch.image_sizes, list(sizes))

    def _maps(self, images):
        return self.model.backbone(images.tensors)

    def _heads(self, maps, proposals, image_sizes):
        heads = self.model.roi_heads
        return heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, image_sizes)))

    def _seed(self, seeds):
        for part in (self.model.rpn, self.model.roi_heads):
            part.fg_bg_sampler.seeds = seeds


def stack(images: Sequence[Tensor], canvas: tuple[int, int] | None = None) -> ImageList:
    """Images (3, H, W) of any sizes in one tensor (B, 3, H', W') of raw pixels, with their sizes.

    H' and W' are the least multiples of 32 that hold `canvas`, a (height, width), or, without it, the largest sides.
    """
    sizes = [tuple(image.shape[-2:]) for image in images]
    height, width = (-(-length // DIVISOR) * DIVISOR for length in canvas or map(max, zip(*sizes, strict=True)))
    padded = [F.pad(image, (0, width - w, 0, height - h)) for image, (h, w) in zip(images, sizes, strict=True)]
    return ImageList(torch.stack(padded), sizes)


def padding_mask(batch: ImageList, device: torch.device) -> Tensor:
    """(B, 1, H', W'), True at pixels of the images and False at the padding."""
    height, width = batch.tensors.shape[-2:]
    sizes = torch.tensor(batch.image_sizes, device=device)
    rows, columns = (torch.arange(length, device=device) < sizes[:, place, None]
                     for place, length in enumerate((height, width)))
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def default_pixels(name: str, preset: str) -> str:
    """The default normalisation of a network: that of MSRA for the published networks except ResNet-18."""
    return "bgr" if preset == "detectron2" and name in ("r50", "r101", "mv2") else "rgb"


def _initialise_heads(heads):
    """Initialise the box head as detectron2 does; torchvision uses the default of PyTorch's linear layers."""
    for layer in (heads.box_head.fc6, heads.box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    for layer, std in ((heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
