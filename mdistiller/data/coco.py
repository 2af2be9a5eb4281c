"""Images with boxes from COCO-format folders (Lin et al., arXiv:1405.0312), checked before a run begins."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.data.boxes import Annotation, clip_boxes
from mdistiller.data.build import DATASETS
from mdistiller.data.detection import BoxSource, DetectionData
from mdistiller.data.files import open_image
from mdistiller.errors import UserError

SPLITS = (("train2017", "val2017"), ("train", "val"))  # names of folders, and within those of annotation files
NAMED = "instances_{}.json"


@DATASETS.register("coco")
def coco(cfg: CfgNode, device: torch.device | str) -> DetectionData:
    """COCO 2017 in its official layout, or any folder of that format, below DATASET.ROOT.

    annotations/instances_train2017.json and instances_val2017.json (or _train and _val), images in train2017/ and
    val2017/ (or train/ and val/). Classes are the categories by ascending id. Crowd boxes and images without a box
    are not trained on; evaluation has both.
    """
    return _folder("coco", Path(cfg.DATASET.ROOT), cfg, device)


@DATASETS.register("coco_tiny")
def coco_tiny(cfg: CfgNode, device: torch.device | str) -> DetectionData:
    """A folder coco_tiny/ of COCO's format below DATASET.ROOT (or that folder itself), for tests and trials."""
    root = Path(cfg.DATASET.ROOT)
    return _folder("coco_tiny", root / "coco_tiny" if (root / "coco_tiny").is_dir() else root, cfg, device)


def _folder(name, root, cfg, device):
    for train, val in SPLITS:
        if (root / "annotations" / NAMED.format(train)).is_file():
            sets = [CocoFolder(root / "annotations" / NAMED.format(split), root / split) for split in (train, val)]
            break
    else:
        raise UserError(
            f"DATASET.ROOT {root}: {name} is not there, expected annotations/{NAMED.format('train2017')} in it; "
            "set DATASET.ROOT"
        )
    train, val = sets
    if train.categories != val.categories:
        raise UserError(f"{val.file}: its categories are not those of {train.file}")
    return DetectionData(train, val, cfg, device, name=name, flip=True)


class CocoFolder(BoxSource):
    """The images of an annotation file of COCO's format. Raises UserError in one line for a broken file.

    Boxes are cut off at the border of their image, and left out where no more than a pixel wide or high is left.
    """

    def __init__(self, file: Path, folder: Path):
        self.file, self.folder = file, folder
        content = _read(file)
        self.categories = self._categories(content["categories"])
        entries = self._images(content["images"])
        self.entries = [entries[key] for key in sorted(entries)]
        self.sizes = np.array([(entry["height"], entry["width"]) for entry in self.entries], np.int64)
        self.truth = self._truth(content["annotations"], entries)
        self.annotations = [self._annotation(entry) for entry in self.entries]

    def image(self, position: int) -> Image.Image:
        """The image as RGB; a grey or CMYK one is converted, a note of its orientation not heeded, as COCO does."""
        entry = self.entries[position]
        image = open_image(self.folder / entry["file_name"])
        if image.size != (entry["width"], entry["height"]):
            raise ValueError(f"{image.width}x{image.height} pixels, and {self.file.name} says "
                             f"{entry['width']}x{entry['height']}")
        return image

    def place(self, position: int) -> str:
        """Where an image is, for messages."""
        return str(self.folder / self.entries[position]["file_name"])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the annotation file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def _fail(self, words):
        raise UserError(f"{self.file}: {words}")

    def _categories(self, entries):
        names = {}
        for entry in entries:
            number, name = entry.get("id"), entry.get("name")
            if type(number) is not int or not isinstance(name, str):
                self._fail(f"category {entry}: expected an id (a whole number) and a name")
            if number in names:
                self._fail(f"category id {number} is there twice")
            names[number] = name
        if not names:
            self._fail("no categories")
        return tuple(sorted(names.items()))

    def _images(self, entries):
        found = {}
        for entry in entries:
            number, name = entry.get("id"), entry.get("file_name")
            if type(number) is not int or not isinstance(name, str):
                self._fail(f"image {str(entry)[:80]}: expected an id (a whole number) and a file_name")
            if any(type(entry.get(side)) is not int or entry[side] < 1 for side in ("height", "width")):
                self._fail(f"image {number}: expected height and width in pixels")
            if number in found:
                self._fail(f"image id {number} is there twice")
            found[number] = {"id": number, "file_name": name, "height": entry["height"], "width": entry["width"]}
        if not found:
            self._fail("no images")
        for entry in found.values():
            if not (self.folder / entry["file_name"]).is_file():
                self._fail(f"image {entry['id']}: no such file: {self.folder / entry['file_name']}")
        return found

    def _truth(self, annotations, entries):
        """{image id: its annotations as the evaluation reads them}, every one checked."""
        truth, known, seen = {number: [] for number in entries}, {number for number, _ in self.categories}, set()
        for one in annotations:
            number, image, category, box = (one.get(key) for key in ("id", "image_id", "category_id", "bbox"))
            if number in seen:
                self._fail(f"annotation id {number} is there twice")
            seen.add(number)
            if image not in entries:
                self._fail(f"annotation {number}: image {image} is not one of the file's")
            if category not in known:
                self._fail(f"annotation {number}: category {category} is not one of the file's")
            if not _is_box(box):
                self._fail(f"annotation {number}: bbox {box}: expected four finite numbers x, y, width, height")
            entry, (x, y, width, height) = entries[image], map(float, box)
            if x >= entry["width"] or y >= entry["height"] or x + width <= 0 or y + height <= 0:
                self._fail(f"annotation {number}: bbox {box} is outside image {image} "
                           f"({entry['width']}x{entry['height']} pixels)")
            truth[image].append({"id": number, "image_id": image, "category_id": category,
                                 "bbox": [x, y, width, height], "area": float(one.get("area", width * height)),
                                 "iscrowd": int(one.get("iscrowd", 0))})
        return truth

    def _annotation(self, entry):
        single = [one for one in self.truth[entry["id"]] if not one["iscrowd"]]
        boxes = np.array([one["bbox"] for one in single], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes, kept = clip_boxes(boxes, entry["height"], entry["width"])
        rank = {number: place for place, (number, _) in enumerate(self.categories, start=1)}
        labels = np.array([rank[one["category_id"]] for one in single], np.int64)
        return Annotation(entry["id"], boxes[kept].astype(np.float32), labels[kept])


def _is_box(box):
    if not isinstance(box, list) or len(box) != 4:
        return False
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in box)
    return numbers and box[2] >= 0 and box[3] >= 0


def _read(file):
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: no JSON ({error})") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file}: {key}: expected a list of objects, as COCO's files have")
    return content
