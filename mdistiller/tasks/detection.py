"""Object detection: a sample is a box proposal of the student that was sampled for training."""

from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from mdistiller.distributed import gather
from mdistiller.errors import UserError
from mdistiller.models import detection as detectors  # whose names import torchvision when they are used
from mdistiller.models.base import Features
from mdistiller.tasks.base import TASKS, Task, TaskOutput
from mdistiller.tasks.coco_ap import average_precision, evaluator, standard_results

NEAR_NOTHING = 1.0  # AP in percent
BLANK_SIDE = 128  # side of the image in a dry run, in pixels


class DetectorInputs(NamedTuple):
    """Raw pixels, which student and teacher share, and their annotations."""

    images: Any  # torchvision's ImageList
    targets: list[dict] | None
    seeds: list[int] | None


@TASKS.register("detection")
class Detection(Task):
    """Boxes of C classes. Logits are (N, C+1) for the sampled proposals of all images, with the background first.

    The supervised losses "cls", "box", "rpn_cls" and "rpn_box" (Ren et al., arXiv:1506.01497) have weight 1. The
    teacher gets the same pixels and computes logits for the student's proposals; its own proposal network does not run.
    `group` is the image of a proposal. As in the published code, the losses of a process are means over its own
    proposals.
    """

    offers = ("image_feats",)
    headline = "ap"
    metrics = ("ap", "ap50", "ap75")
    unit = "proposals"
    supervised_terms = ("cls", "box", "rpn_cls", "rpn_box")
    parts = MappingProxyType({"foreground": "background"})
    head_maps = len(detectors.LEVELS)
    export_formats = ("pth", "safetensors", "torchscript")

    def __init__(self, cfg, info):
        super().__init__(cfg, info)
        if cfg.SOLVER.LABEL_SMOOTHING:
            raise UserError("SOLVER.LABEL_SMOOTHING: not available for detection; expected 0, found "
                            f"{cfg.SOLVER.LABEL_SMOOTHING}")

    def network(self, role, pretrained=False):
        cfg, name = self.cfg, self.cfg.DISTILLER[role]
        model, rcnn = cfg.MODEL, cfg.DETECTION
        released = cfg.DATASET.RELEASED_PIXEL_MEAN and role == "STUDENT" and name == "r18"
        try:
            network = detectors.Detector(
                name, self.info.num_classes, model.PRESET, model.NORM, model[f"{role}_WIDTH"], model.CHANNELS,
                model.HEAD_CHANNELS, model.FREEZE if model.NORM == "frozen" else 0, "released" if released else None,
                tuple(model.ANCHOR_SIZES), rpn_batch_size_per_image=rcnn.RPN_BATCH,
                box_batch_size_per_image=rcnn.ROI_BATCH, rpn_post_nms_top_n_train=rcnn.PROPOSALS[0],
                rpn_post_nms_top_n_test=rcnn.PROPOSALS[1], rpn_pre_nms_top_n_train=rcnn.ANCHORS_KEPT[0],
                rpn_pre_nms_top_n_test=rcnn.ANCHORS_KEPT[1], box_score_thresh=rcnn.SCORE_THRESHOLD,
                box_nms_thresh=rcnn.NMS, box_detections_per_img=rcnn.DETECTIONS,
            )
            if pretrained:
                _with_library_body(network, name, role)
        except UserError as error:
            raise UserError(f"DISTILLER.{role}: {error}") from None
        return network

    def inputs(self, batch, view):
        images = detectors.stack(batch["image"], batch.get("canvas"))
        return DetectorInputs(images, batch.get("target"), batch.get("seeds"))

    def run_student(self, network, inputs):
        images = network.normalise(inputs.images)
        if not network.training:  # a dry run to find shapes
            return TaskOutput(images.tensors.new_zeros(0, network.num_classes + 1),
                              Features(feats=network.features(images)), images.tensors.new_zeros(0).long())
        step = network.train_pass(images, inputs.targets, inputs.seeds)
        sampled = step.sampled
        logits, deltas, group = self._distilled(sampled, step.logits, sampled.deltas, sampled.image_index)
        return TaskOutput(logits, Features(step.features), group, step.task_losses, sampled, regression=offsets(deltas))

    def run_teacher(self, network, inputs, student):
        feats = network.features(network.normalise(inputs.images))
        if student is None or student.extra is None:
            return TaskOutput(feats[0].new_zeros(0, network.num_classes + 1), Features(feats=feats))
        return self.head(network, feats, student)

    def head(self, network, maps, student):
        sampled = student.extra
        logits, deltas = self._distilled(sampled, *network.box_logits(maps, sampled.proposals, sampled.image_sizes))
        return TaskOutput(logits, Features(feats=maps), student.group, regression=offsets(deltas))

    def _distilled(self, sampled, *rows):
        """The rows (N, ...) of those proposals that are distilled."""
        if not self.cfg.DETECTION.FOREGROUND_ONLY:
            return rows
        foreground = torch.where(sampled.target > 0)[0]
        return tuple(one[foreground] for one in rows)

    def target(self, batch, student):
        (target,) = self._distilled(student.extra, student.extra.target)
        return target

    def supervised(self, outputs, target, label_smoothing):
        (output,) = outputs
        return dict(output.losses)

    def progress(self, logits, target):
        return {"accuracy": logits.argmax(dim=1) == target, "foreground": target > 0}

    def evaluate(self, network, batches, device="cpu"):
        truth, self.results, image_ids = self.collect(network, batches)
        if not image_ids:
            raise ValueError("no images to evaluate on")
        return average_precision(truth, self.results, image_ids, self.info.categories) | {"count": len(image_ids)}

    @torch.inference_mode()
    def collect(self, network: nn.Module, batches: Iterable[dict]) -> tuple[list[dict], list[dict], list[int]]:
        """(annotations, detections in COCO's standard form, image ids) from all ranks, with each image once."""
        own = list(self._detections(network, batches))
        by_image = {image_id: rest for part in gather(own) for image_id, *rest in part}
        image_ids = sorted(by_image)
        truth = [one for image_id in image_ids for one in by_image[image_id][0]]
        results = [one for image_id in image_ids for one in by_image[image_id][1]]
        return truth, results, image_ids

    def _detections(self, network, batches) -> Iterator[tuple[int, list[dict], list[dict]]]:
        for batch in batches:
            sizes = [target["size"] for target in batch["target"]]
            found = network.detect(batch["image"], sizes)
            for target, truth, one in zip(batch["target"], batch["truth"], found, strict=True):
                image_id = target["image_id"]
                yield image_id, truth, standard_results([one], [image_id], self.info.categories)

    def check_evaluation(self):
        evaluator()

    def doubt(self, result):
        if result["ap"] >= NEAR_NOTHING:
            return None
        return (
            f"AP of {result['ap']:.2f} is near 0: was its checkpoint trained with these categories, in this order, and "
            "with this MODEL.PRESET and pixel normalisation?"
        )

    def export_metadata(self):
        side = self.cfg.DATASET.TEST.MIN_SIZE
        taken = {"shape": [3, side, side], "dtype": "uint8", "channels": "RGB"}
        return {
            "input": taken, "state_dict_input": taken,
            "output": {"boxes": ["n", 4], "scores": ["n"], "labels": ["n"], "corners": "left, top, right, bottom"},
            "first_label": 1, "categories": list(self.info.categories),
        }

    def script(self, network):
        side = self.cfg.DATASET.TEST.MIN_SIZE
        return detectors.traced(network, side, side)

    def blank_inputs(self, size, like):
        height, width = (size, size) if isinstance(size, int) else size or (BLANK_SIDE, BLANK_SIDE)
        image = torch.zeros(3, height, width, device=like.device, dtype=like.dtype)
        return DetectorInputs(detectors.stack([image]), None, None)


def offsets(deltas: torch.Tensor) -> torch.Tensor:
    """Box offsets (N, 4 C) of deltas (N, 4 (C+1)): without those of the background, which nothing trains."""
    return deltas[:, 4:]


def _with_library_body(network, name, role):
    if role == "TEACHER":
        raise UserError("only the body of a detector has pretrained weights; expected a file of a whole teacher")
    detectors.load_library_body(network, name)
