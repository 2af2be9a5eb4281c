"""Average precision of detections by COCO's rules (Lin et al., arXiv:1405.0312), computed by faster-coco-eval."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from mdistiller.libraries import import_extra

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
           "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
ABSENT = -1.0  # COCO's value without ground truth of this kind


def evaluator() -> ModuleType:
    """The library that computes average precision. Raises UserError if it is not installed."""
    return import_extra("faster_coco_eval", "detection", "detection")


def average_precision(
    truth: list[dict], results: list[dict], image_ids: Sequence[int], categories: Sequence[int]
) -> dict[str, float]:
    """COCO's twelve metrics by name (`METRICS`), in percent; `ABSENT` if there is no ground truth of this kind.

    `truth` are annotations (image_id, category_id, bbox, area, iscrowd), and `results` are detections in COCO's
    standard form (image_id, category_id, bbox, score), with boxes as x, y, width, height. "ap" is the mean over IoU .50
    to .95 and over the categories in `truth`, with at most 100 detections per image. Annotations are numbered anew:
    COCO's rules take those with an id below 1 for unmatched ones. Raises UserError if the library is not installed.
    """
    library = evaluator()
    content = {"images": [{"id": number} for number in image_ids], "info": {},
               "annotations": [one | {"id": number} for number, one in enumerate(truth, start=1)],
               "categories": [{"id": number, "name": str(number)} for number in categories]}
    reference = library.COCO()
    reference.dataset = content
    reference.createIndex()
    found = reference.loadRes(results) if results else _nothing(library.COCO, content)
    evaluation = library.COCOeval_faster(reference, found, "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) if value < 0 else 100 * float(value)
            for name, value in zip(METRICS, evaluation.stats[:len(METRICS)], strict=True)}


def standard_results(
    detections: list[dict[str, Tensor]], image_ids: Sequence[int], categories: Sequence[int]
) -> list[dict]:
    """Detections (boxes as corners, scores, labels from 1) as a list in COCO's standard form, with JSON types."""
    results = []
    for image_id, found in zip(image_ids, detections, strict=True):
        corners = found["boxes"].float().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        for box, score, label in zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": categories[label - 1], "bbox": box, "score": score})
    return results


def _nothing(kind, content):
    empty = kind()
    empty.dataset = content | {"annotations": []}
    empty.createIndex()
    return empty
