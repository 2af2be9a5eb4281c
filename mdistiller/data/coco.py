"""Images with boxes from folders in COCO's format (Lin et al., arXiv:1405.0312), checked before a run begins."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.config.words import shown
from mdistiller.data.boxes import Annotation, clip_boxes
from mdistiller.data.build import DATASETS
from mdistiller.data.detection import BoxSource, DetectionData
from mdistiller.data.files import ImageFiles, image_files, open_image, quick_check, sound_positions
from mdistiller.errors import UserError
from mdistiller.files import read_plain

SPLITS = (("train2017", "val2017"), ("train", "val"))  # names of folders, also in those of annotation files
NAMED = "instances_{}.json"
MOST_ID, MOST_PIXELS = 2**53, 10**6  # ids are also stored as float64; pixels of a side


@DATASETS.register("coco")
def coco(cfg: CfgNode, device: torch.device | str) -> DetectionData:
    """COCO 2017 in its official layout, or any folder of this format, below DATASET.ROOT.

    It contains annotations/instances_train2017.json and instances_val2017.json (or _train and _val), and the images in
    train2017/ and val2017/ (or train/ and val/). Classes are the categories in order of their ids. Crowd boxes and
    images without a box are used in evaluation but not in training.
    """
    return _folder("coco", Path(cfg.DATASET.ROOT), cfg, device)


@DATASETS.register("coco_tiny")
def coco_tiny(cfg: CfgNode, device: torch.device | str) -> DetectionData:
    """The folder coco_tiny/ in COCO's format below DATASET.ROOT (or DATASET.ROOT itself), for tests and trials."""
    root = Path(cfg.DATASET.ROOT)
    return _folder("coco_tiny", root / "coco_tiny" if (root / "coco_tiny").is_dir() else root, cfg, device)


def _folder(name, root, cfg, device):
    for train, val in SPLITS:
        if (root / "annotations" / NAMED.format(train)).is_file():
            sets = [CocoFolder(root / "annotations" / NAMED.format(split), root / split) for split in (train, val)]
            break
    else:
        raise UserError(
            f"DATASET.ROOT {root}: {name} is missing, expected annotations/{NAMED.format('train2017')} in it; "
            "set DATASET.ROOT"
        )
    train, val = sets
    if train.categories != val.categories:
        raise UserError(f"{val.file}: its categories differ from those of {train.file}")
    sound = sound_positions([one.files for one in sets], lambda number, position: sets[number].examine(position),
                            "checking", cfg.DATASET.SKIP_BROKEN, divided=True)
    for one, kept in zip(sets, sound, strict=True):
        one.keep(kept)
    return DetectionData(train, val, cfg, device, name=name, flip=True)


class CocoFolder(BoxSource):
    """The images of an annotation file in COCO's format. Raises UserError, in one line, for a broken file.

    Boxes are clipped to their image, and left out if they are then at most one pixel wide or high.
    """

    def __init__(self, file: Path, folder: Path):
        self.file, self.folder = file, folder
        content = _read(file)
        categories = self._by_id(content, "categories", "category", "name")
        self.categories = tuple(sorted((number, entry["name"]) for number, entry in categories.items()))
        entries = self._images(content)
        self.entries = [entries[key] for key in sorted(entries)]
        self.left_out: list[int] = []  # ids of broken images
        self.sizes = np.array([(entry["height"], entry["width"]) for entry in self.entries], np.int64)
        self.truth = self._truth(content["annotations"], entries)
        self.annotations = [self._annotation(entry) for entry in self.entries]

    def image(self, position: int) -> Image.Image:
        """The image as RGB, converted from grey or CMYK; its EXIF orientation is ignored, as in COCO."""
        image = open_image(self.place(position))
        self._expect_size(position, image.size)
        return image

    def place(self, position: int) -> str:
        """Path of an image, for messages."""
        return str(self.folder / self.entries[position]["file_name"])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the annotation file, and of the ids of the images that were left out, if any."""
        left_out = b"".join(number.to_bytes(8, "little", signed=True) for number in self.left_out)
        return hashlib.sha256(self.file.read_bytes() + left_out).hexdigest()

    @property
    def files(self) -> ImageFiles:
        """The image files, in the order of the positions, all of one class."""
        return image_files(self.folder, [entry["file_name"] for entry in self.entries], np.zeros(len(self.entries)))

    def examine(self, position: int) -> None:
        """Raise an exception for an image that is broken or of another size, see `quick_check`."""
        self._expect_size(position, quick_check(self.place(position)))

    def keep(self, positions: np.ndarray) -> None:
        """Leave out all images but those at `positions`, which are renumbered in this order."""
        self.left_out += [self.entries[one]["id"] for one in np.setdiff1d(np.arange(len(self.entries)), positions)]
        self.entries, self.annotations = ([each[one] for one in positions] for each in (self.entries, self.annotations))
        self.sizes = self.sizes[positions]

    def _expect_size(self, position, size):
        stated = self.entries[position]["width"], self.entries[position]["height"]
        if size == stated:
            return
        why = ""
        if size == stated[::-1]:
            why = (": width and height are exchanged, as if the boxes were drawn after applying its EXIF orientation, "
                   "which is ignored here; store it upright")
        raise ValueError(f"{size[0]}x{size[1]} pixels, expected {stated[0]}x{stated[1]} as in {self.file.name}{why}")

    def _fail(self, words):
        raise UserError(f"{self.file}: {words}")

    def _by_id(self, content, key, kind, name_key):
        """{id: entry} of a list of the file, whose entries must have different ids and a name."""
        found = {}
        for entry in content[key]:
            number = entry.get("id")
            if not _is_integer(number) or not isinstance(entry.get(name_key), str):
                self._fail(f"{kind} {str(entry)[:80]}: expected an id (an integer) and a {name_key}")
            if number in found:
                self._fail(f"{kind} id {number} occurs twice")
            found[number] = entry
        if not found:
            self._fail(f"no {key}")
        return found

    def _images(self, content):
        found = self._by_id(content, "images", "image", "file_name")
        for number, entry in found.items():
            if any(type(entry.get(side)) is not int or not 1 <= entry[side] <= MOST_PIXELS
                   for side in ("height", "width")):
                self._fail(f"image {number}: expected height and width in pixels")
            if not (self.folder / entry["file_name"]).is_file():
                self._fail(f"image {number}: no such file: {self.folder / entry['file_name']}")
        return {number: {key: entry[key] for key in ("id", "file_name", "height", "width")}
                for number, entry in found.items()}

    def _truth(self, annotations, entries):
        """{image id: its annotations, in the form that the evaluation reads}, after checks of each of them."""
        truth, known, seen = {number: [] for number in entries}, {number for number, _ in self.categories}, set()
        for one in annotations:
            number, image, category, box = (one.get(key) for key in ("id", "image_id", "category_id", "bbox"))
            for key, each in (("id", number), ("image_id", image), ("category_id", category)):
                if not _is_integer(each):
                    self._fail(f"annotation {shown(number)}: {key}: expected an integer, found {shown(each)}")
            if number in seen:
                self._fail(f"annotation id {number} occurs twice")
            seen.add(number)
            if image not in entries:
                self._fail(f"annotation {number}: image {image} is not in the file")
            if category not in known:
                self._fail(f"annotation {number}: category {category} is not in the file")
            if not _is_box(box):
                self._fail(f"annotation {number}: bbox {box}: expected four finite numbers x, y, width, height")
            entry, (x, y, width, height) = entries[image], map(float, box)
            if x > entry["width"] or y > entry["height"] or x + width < 0 or y + height < 0:  # touching is left out
                self._fail(f"annotation {number}: bbox {box} is outside image {image} "
                           f"({entry['width']}x{entry['height']} pixels)")
            area, crowd = one.get("area", width * height), one.get("iscrowd", 0)
            if not _is_number(area) or crowd not in (0, 1):
                self._fail(f"annotation {number}: expected a number as area and 0 or 1 as iscrowd; found {shown(area)} "
                           f"and {shown(crowd)}")
            truth[image].append({"id": number, "image_id": image, "category_id": category,
                                 "bbox": [x, y, width, height], "area": float(area), "iscrowd": int(crowd)})
        return truth

    def _annotation(self, entry):
        single = [one for one in self.truth[entry["id"]] if not one["iscrowd"]]
        boxes = np.array([one["bbox"] for one in single], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes, kept = clip_boxes(boxes, entry["height"], entry["width"])
        rank = {number: place for place, (number, _) in enumerate(self.categories, start=1)}
        labels = np.array([rank[one["category_id"]] for one in single], np.int64)
        return Annotation(entry["id"], boxes[kept].astype(np.float32), labels[kept])


def _is_integer(value):
    return type(value) is int and abs(value) <= MOST_ID  # not isinstance: True is an int


def _is_box(box):
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(map(_is_number, box)) and box[2] >= 0 and box[3] >= 0


def _is_number(value):
    return isinstance(value, int | float) and abs(value) <= MOST_ID  # False for NaN


def _read(file):
    try:
        content = json.loads(read_plain(file).removeprefix("\ufeff"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file}: {key}: expected a list of objects, as in COCO's files")
    return content
