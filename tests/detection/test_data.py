"""Images with boxes: geometry, order, correct and broken COCO folders, and drawn digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.data import build_data
from mdistiller.data.boxes import GroupedOrder, View, draw_seeds, draw_views, flip_boxes, resized, show
from mdistiller.data.detection import BoxRequest
from mdistiller.errors import RunError, UserError
from tests.detection.support import SMALL, config, write_coco
from tests.wrong_inputs.case import run_here

SIZES = [  # height, width, shorter side, longer side at most -> height, width: by hand from detectron2's rule
    (480, 640, 800, 1333, (800, 1067)), (640, 480, 800, 1333, (1067, 800)), (427, 640, 800, 1333, (800, 1199)),
    (375, 500, 800, 1333, (800, 1067)), (500, 375, 640, 1333, (853, 640)), (640, 427, 672, 1333, (1007, 672)),
    (100, 100, 800, 1333, (800, 800)), (333, 500, 704, 1333, (704, 1057)), (200, 800, 800, 1333, (333, 1333)),
    (800, 200, 800, 1333, (1333, 333)), (480, 640, 640, 1333, (640, 853)), (612, 612, 736, 1333, (736, 736)),
    (240, 640, 800, 1333, (500, 1333)), (640, 240, 640, 1333, (1333, 500)), (96, 128, 96, 1333, (96, 128)),
    (80, 100, 768, 1333, (768, 960)), (1, 1, 8, 16, (8, 8)), (10, 30, 8, 16, (5, 16)), (3, 2, 5, 100, (8, 5)),
    (593, 600, 128, 256, (128, 130)),
]


@pytest.mark.parametrize(("height", "width", "short", "longest", "expected"), SIZES)
def test_the_resized_size_follows_detectron2(height, width, short, longest, expected):
    assert resized(height, width, short, longest) == expected


def test_flipping_twice_is_the_identity_and_boxes_follow_pixels():
    boxes = np.array([[2, 3, 9, 12], [0, 0, 4, 4]], np.float32)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, 20), 20), boxes)
    pixels = np.zeros((24, 20, 3), np.uint8)
    pixels[3:12, 2:9] = 255
    shown, moved = show(Image.fromarray(pixels), boxes, View(20, True), 100)
    assert moved[0].tolist() == [11, 3, 18, 12]
    assert (shown[3:12, 11:18] == 255).all() and shown.sum() == pixels.sum()
    shown, moved = show(Image.fromarray(pixels), boxes, View(40, False), 100)
    assert shown.shape == (48, 40, 3) and moved[0].tolist() == [4, 6, 18, 24]


def test_views_and_seeds_are_functions_of_seed_epoch_and_index():
    index = np.arange(200)
    views = draw_views(3, 2, index, [640, 800], True)
    assert draw_views(3, 2, index[50:60], [640, 800], True) == views[50:60]
    assert draw_views(3, 3, index, [640, 800], True) != views != draw_views(4, 2, index, [640, 800], True)
    assert 60 < sum(view.flip for view in views) < 140 and 60 < sum(view.short == 640 for view in views) < 140
    assert not any(view.flip for view in draw_views(3, 2, index, [640], False))
    assert len(set(draw_seeds(3, 2, index))) == 200 and draw_seeds(3, 2, [7]) == [draw_seeds(3, 2, index)[7]]
    passes, later = 2 + index % 2, draw_views(3, 3, index, [640, 800], True)  # a batch may have images of two passes
    mixed = [(later if odd else views)[one] for one, odd in enumerate(index % 2)]
    assert draw_views(3, passes, index, [640, 800], True) == mixed
    assert draw_seeds(3, passes, index)[6:8] == [draw_seeds(3, 2, [6])[0], draw_seeds(3, 3, [7])[0]]


def test_batches_are_of_one_shape_and_leftovers_wait_for_the_next_pass():
    groups = np.array([0] * 7 + [1] * 4)
    order = GroupedOrder(groups, 3, seed=5)
    stream = [order.batch(number) for number in range(22)]  # 6 passes are 42 wide and 24 tall images: 14 + 8 batches
    assert all(len(set(groups[index])) == 1 for _, index in stream)
    seen = {(int(p), int(i)) for passes, index in stream for p, i in zip(passes, index, strict=True)}
    assert seen == {(p, i) for p in range(1, 7) for i in range(11)}
    fresh = GroupedOrder(groups, 3, seed=5).batch(17)
    assert all(np.array_equal(*pair) for pair in zip(fresh, stream[17], strict=True))


@pytest.mark.parametrize(("start", "epoch"), [(0, 1), (1, 3)])
def test_a_batch_does_not_depend_on_where_a_run_resumes_or_on_ranks(tmp_path, start, epoch):
    data = build_data(config(write_coco(tmp_path)), "cpu")
    whole = list(data.train_batches(epoch))[start]
    (resumed, *_) = data.train_batches(epoch, start=start)
    halves = [next(data.train_batches(epoch, start=start, rank=rank, world_size=2)) for rank in range(2)]
    for parts in ([resumed], halves):
        pictures, seeds = ([one for part in parts for one in part[key]] for key in ("image", "seeds"))
        assert all(torch.equal(*pair) for pair in zip(pictures, whole["image"], strict=True))
        assert seeds == whole["seeds"]
        assert all(part["canvas"] == whole["canvas"] for part in parts)
    assert whole["canvas"] == tuple(max(one.shape[side] for one in whole["image"]) for side in (1, 2))
    assert [half["share"] for half in halves] == [1.0, 1.0] if "share" in halves[0] else True
    assert data.batch_index(epoch, start).tolist() == whole["index"].tolist()


def test_workers_give_the_same_batches(tmp_path):
    root = write_coco(tmp_path)
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))  # images without a box
    inside, outside = (build_data(config(root, "DATASET.NUM_WORKERS", number), "cpu") for number in (0, 1))
    for batches in (lambda data: data.train_batches(1), lambda data: data.eval_batches()):
        for one, other in zip(batches(inside), batches(outside), strict=True):
            assert all(torch.equal(*pair) for pair in zip(one["image"], other["image"], strict=True))
            for a, b in zip(one["target"], other["target"], strict=True):
                assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])


def test_a_batch_takes_as_many_file_descriptors_however_many_images_it_has(tmp_path):
    data = build_data(config(write_coco(tmp_path)), "cpu")
    for number in (1, 5):
        (batch,) = data.workers.read([BoxRequest("train", np.arange(number), [View(48, False)] * number)])
        shapes = [[48, 51, 2], [53, 48, 2], [48, 48, 2], [51, 48, 2], [48, 50, 2]]
        assert len(batch) == 3 and batch["shapes"].tolist() == shapes[:number]


def test_too_little_shared_memory_fails_the_run_with_advice(tmp_path, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # workers are forked and inherit it
    data = build_data(config(write_coco(tmp_path), "DATASET.NUM_WORKERS", 1), "cpu")
    with pytest.raises(RunError, match=r"/dev/shm .*No space left on device.* DATASET.NUM_WORKERS 0"):
        next(data.train_batches(1))


def test_labels_are_ranks_of_category_ids_and_crowds_are_only_for_evaluation(tmp_path):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][2]["bbox"] = [1.0, 1.0, 1.0, 1.0]  # one pixel: not wider or higher than 1

    data = build_data(config(write_coco(tmp_path, change=change)), "cpu")
    source, _ = data.sources["train"]
    assert data.info.categories == (3, 7, 90) and data.info.num_classes == 3
    assert source.annotations[0].labels.tolist() == [3] and source.annotations[1].labels.tolist() == [3]
    assert source.annotations[3].labels.tolist() == [1, 3]


def test_what_only_an_evaluation_reads_is_kept_of_the_evaluated_images_with_their_crowds(tmp_path):
    def change(content):
        for one in content["annotations"]:
            one["iscrowd"] = one["id"] % 2

    root = write_coco(tmp_path, images_per_split=(8, 3), change=change)
    data = build_data(config(root, "DATASET.VAL_FRACTION", 0.25), "cpu")
    truth = [one for batch in data.eval_batches("val") for one in batch["truth"]]
    assert [[one["iscrowd"] for one in each] for each in truth] == [[1, 0]] * 2
    assert list(data.sources["val"][0].truth.values()) == truth
    assert len(data.sources["test"][0].truth) == 3


def test_images_without_a_box_are_not_trained_on_and_boxes_are_cut_off_at_the_border(tmp_path):
    def change(content):
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 102]
        content["annotations"][0]["bbox"] = [-5.0, -5.0, 500.0, 30.0]

    data = build_data(config(write_coco(tmp_path, change=change)), "cpu")
    assert data.info.num_train == 4
    assert data.sources["train"][0].annotations[0].boxes[0].tolist() == [0, 0, 64, 25]


def set_box(value):
    return lambda content: content["annotations"][0].update(bbox=value)


@pytest.mark.parametrize("box", [[0, 5, 0, 10], [64, 5, 0, 10], [5, 60, 10, 0], [-5, 5, 5, 10], [5, 5, 0, 0]])
def test_a_box_without_area_at_the_border_is_left_out_like_one_within(box, tmp_path):
    root = write_coco(tmp_path, change=lambda content: content["annotations"][0].update(bbox=box))
    for path in (root / "annotations").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as editors of Windows write it
    source, _ = build_data(config(root), "cpu").sources["train"]
    assert [len(one.boxes) for one in source.annotations] == [1, 2, 2, 2, 2]


BROKEN = {
    "no image": (lambda c: c["images"][0].update(file_name="gone.jpg"), "image 100: no such file"),
    "category": (lambda c: c["annotations"][0].update(category_id=4), "annotation 1: category 4 is not in the file"),
    "outside": (set_box([70.0, 5.0, 10.0, 10.0]), "is outside image 100"),
    "nan": (set_box([float("nan"), 5.0, 10.0, 10.0]), "expected four finite numbers"),
    "text": (set_box(["1", 5.0, 10.0, 10.0]), "expected four finite numbers"),
    "negative": (set_box([1.0, 5.0, -10.0, 10.0]), "expected four finite numbers"),
    "annotation twice": (lambda c: c["annotations"][1].update(id=1), "annotation id 1 occurs twice"),
    "image twice": (lambda c: c["images"].append(dict(c["images"][0])), "image id 100 occurs twice"),
    "category twice": (lambda c: c["categories"].append(dict(c["categories"][0])), "category id 3 occurs twice"),
    "stranger": (lambda c: c["annotations"][0].update(image_id=7), "image 7 is not in the file"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "no images"),
    "no boxes": (lambda c: c.update(annotations=[]), "none of the training images has a box"),
    "no list": (lambda c: c.update(images=3), "images: expected a list of objects"),
    "huge": (set_box([10**400, 5.0, 10.0, 10.0]), "expected four finite numbers"),
    "an image of lists": (lambda c: c["annotations"][0].update(image_id=[]), "image_id: expected an integer"),
    "an id of lists": (lambda c: c["annotations"][0].update(id=[[1]]), "annotation [[1]]: id: expected an integer"),
    **{f"an id of {value!r}": (lambda c, value=value: c["annotations"][0].update(id=value), "id: expected an integer")
       for value in ("x", 1.5, True, None, 2**70)},
    "no id": (lambda c: c["annotations"][0].pop("id"), "annotation None: id: expected an integer, found None"),
    "a category of objects": (lambda c: c["annotations"][0].update(category_id={}), "category_id: expected an integer"),
    "crowd of text": (lambda c: c["annotations"][0].update(iscrowd="no"), "0 or 1 as iscrowd; found 720.0 and 'no'"),
    "area of nothing": (lambda c: c["annotations"][0].update(area=None), "expected a number as area"),
    "endless id": (lambda c: c["images"][0].update(id=2**70), "expected an id (an integer)"),
    "endless size": (lambda c: c["images"][0].update(height=2**70), "image 100: expected height and width"),
    "no size": (lambda c: c["images"][0].update(height=0), "image 100: expected height and width"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_file_is_reported_in_one_line(tmp_path, name):
    change, words = BROKEN[name]
    root = write_coco(tmp_path, change=change)
    with pytest.raises(UserError) as error:
        build_data(config(root), "cpu")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_and_a_file_that_is_not_json_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected annotations/instances_train2017.json"):
        build_data(config(tmp_path), "cpu")
    write_coco(tmp_path)
    for text in ("{", "[" * 100_000):
        (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
        with pytest.raises(UserError, match="not valid JSON"):
            build_data(config(tmp_path), "cpu")


def test_grey_and_cmyk_images_are_read_as_rgb(tmp_path):
    root = write_coco(tmp_path)
    for name, mode in (("000000000100.jpg", "L"), ("000000000101.jpg", "CMYK")):
        path = root / "train2017" / name
        Image.open(path).convert(mode).save(path)
    source, _ = build_data(config(root), "cpu").sources["train"]
    assert source.image(0).mode == source.image(1).mode == "RGB"


def turn(path):
    """Stored on its side, with the EXIF orientation that lets viewers show 62x68 pixels as before."""
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (68, 62)).save(path, exif=exif)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


BAD_IMAGES = {
    "turned": ("train2017/000000000101.jpg", turn, "68x62 pixels, expected 62x68 as in instances_train2017.json: width "
               "and height are exchanged, as if the boxes were drawn after applying its EXIF orientation"),
    "cut": ("train2017/000000000101.jpg", cut, "truncated"),
    "of another size": ("val2017/000000000100.jpg", lambda path: Image.new("RGB", (5, 5)).save(path),
                        "000000000100.jpg (5x5 pixels, expected 64x60 as in instances_val2017.json)"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_ends_a_run_before_its_folder_exists_or_is_skipped(tmp_path, name):
    file, change, words = BAD_IMAGES[name]
    root = write_coco(tmp_path / "data")
    before = build_data(config(root), "cpu")
    change(root / file)
    (tmp_path / "a.yaml").write_text("DATASET: {ROOT: data}\n")
    code, _, err = run_here("train", ["--cfg", "a.yaml", *map(str, SMALL)], tmp_path)
    assert code == 2 and words in err and "DATASET.SKIP_BROKEN True" in err and file in err
    assert not (tmp_path / "output").exists()
    data = build_data(config(root, "DATASET.SKIP_BROKEN", True), "cpu")
    split = "train" if file.startswith("train") else "test"
    sizes = {split: len(positions) for split, (_, positions) in before.sources.items()}
    assert {key: len(kept) for key, (_, kept) in data.sources.items()} == sizes | {split: sizes[split] - 1}
    assert (data.info.fingerprint != before.info.fingerprint) == (split == "train")
    if split == "train":
        seen = [target for batch in data.train_batches(1) for target in batch["target"]]
        assert {target["image_id"] for target in seen} <= {100, 102, 103, 104}


def test_several_runs_of_a_process_draw_the_digits_once(monkeypatch):
    from mdistiller.data import digits_detection as drawn

    monkeypatch.setitem(drawn.NUM_IMAGES, "test", 3)
    one, other = (drawn.DigitCanvases("test", 12345) for _ in range(2))  # a seed that no other test has
    assert len(one.annotations) == 3 and one.annotations is other.annotations and one.truth is not other.truth


def test_drawn_digits_are_a_function_of_the_seed_with_boxes_around_visible_parts():
    from mdistiller.data.digits_detection import draw_canvas, scans

    first, again, other = (draw_canvas("train", seed, 3) for seed in (0, 0, 1))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert len(scans("train")[0]) + len(scans("test")[0]) == 1797
    for position in range(30):
        _, boxes, labels = draw_canvas("test", 0, position)
        assert 1 <= len(boxes) == len(labels) <= 6 and set(labels.tolist()) <= set(range(1, 11))
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 128).all() and (boxes[:, 2:] - boxes[:, :2] > 3).all()
