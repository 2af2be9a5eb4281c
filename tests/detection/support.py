"""A small data set in COCO's format, small detectors, and the numbers of the reference implementations."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from mdistiller.config import load_cfg
from mdistiller.data.coco import CocoFolder
from mdistiller.models.detection import Detector
from tests.data.support import write_image

GOLDEN = Path(__file__).parents[1] / "golden" / "detection"
SMALL = [
    "DATASET.TYPE", "coco", "DATASET.NUM_WORKERS", 0, "DATASET.MIN_SIZES", "[48, 64]", "DATASET.MAX_SIZE", 96,
    "DATASET.TEST.MIN_SIZE", 64, "DATASET.TEST.BATCH_SIZE", 2, "SOLVER.BATCH_SIZE", 2, "SOLVER.MAX_ITER", 4,
    "SOLVER.EVAL_PERIOD", 2, "SOLVER.LR", 0.01, "MODEL.NORM", "gn", "MODEL.CHANNELS", 16, "MODEL.HEAD_CHANNELS", 32,
    "MODEL.STUDENT_WIDTH", 0.125, "MODEL.TEACHER_WIDTH", 0.125, "DETECTION.RPN_BATCH", 32, "DETECTION.ROI_BATCH", 16,
    "DETECTION.ANCHORS_KEPT", "[100, 50]", "DETECTION.PROPOSALS", "[50, 20]", "DISTILLER.TEACHER", "r18",
    "DISTILLER.STUDENT", "r18", "DISTILLER.TEACHER_CHECKPOINT", "random", "KD.TEMPERATURE", 1.0,
]


@cache
def golden(name="golden"):
    """The arrays of a file as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def config(root, *opts):
    return load_cfg(None, [*SMALL, "DATASET.ROOT", str(root), *opts])


def detector(name="r18", classes=4, **kwargs):
    torch.manual_seed(0)
    settings = {"norm": "gn", "width": 0.125, "channels": 16, "head_channels": 32, "freeze": 0,
                "rpn_batch_size_per_image": 32, "box_batch_size_per_image": 16, "rpn_pre_nms_top_n_train": 100,
                "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20}
    return Detector(name, classes, **settings | kwargs)


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def targets(*boxes):
    """Annotations of one image per argument, a list of boxes with labels 1, 2, ..."""
    return [{"boxes": torch.tensor(one, dtype=torch.float32).reshape(-1, 4),
             "labels": torch.arange(1, len(one) + 1)} for one in boxes]


def coco_folder(root, split="train2017"):
    """A split with all that its annotation file says; the data of a run keep only what they need."""
    return CocoFolder(Path(root) / "annotations" / f"instances_{split}.json", Path(root) / split)


def write_coco(root, images_per_split=(5, 3), categories=(3, 7, 90), change=None):
    """Images of several shapes with two boxes each; `change` edits the training annotations. Returns the root."""
    for split, number in zip(("train2017", "val2017"), images_per_split, strict=True):
        content = {"images": [], "annotations": [], "categories": [{"id": n, "name": f"kind{n}"} for n in categories]}
        for place in range(number):
            image_id, height, width = 100 + place, 60 + 8 * (place % 2), 64 - 2 * (place % 3)
            name = f"{image_id:012}.jpg"
            write_image(root / split / name, height, width, seed=place)
            content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
            for box, category in (([4.0, 6.0, 24.0, 30.0], categories[place % len(categories)]),
                                  ([30.5, 20.0, 20.0, 25.0], categories[-1])):
                content["annotations"].append({
                    "id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": category, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0,
                })
        if change is not None and split == "train2017":
            change(content)
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root
