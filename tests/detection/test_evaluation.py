"""Average precision compared with pycocotools and with known results."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from mdistiller.data import build_data
from mdistiller.tasks.coco_ap import METRICS, average_precision, standard_results
from tests.data.support import REAL, needs
from tests.detection.support import coco_folder, config, golden, write_coco


def judge(truth, results, image_ids, categories):
    """pycocotools' twelve numbers."""
    tools, evaluator = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = tools.COCO()
        reference.dataset = {"images": [{"id": n} for n in image_ids], "annotations": [dict(one) for one in truth],
                             "categories": [{"id": n, "name": str(n)} for n in categories], "info": {}}
        reference.createIndex()
        evaluation = evaluator.COCOeval(reference, reference.loadRes([dict(one) for one in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@needs("coco_tiny")
def test_the_coco_api_example_gives_the_same_twelve_numbers_with_both_libraries():
    folder = Path(REAL) / "coco_tiny" / "eval_fixture"
    truth = json.loads((folder / "gt_val2014_100.json").read_text())
    results = json.loads((folder / "det_fakebbox100.json").read_text())
    image_ids, categories = ([one["id"] for one in truth[key]] for key in ("images", "categories"))
    annotations = truth["annotations"]
    found = average_precision(annotations, results, image_ids, categories)
    expected = golden()["eval.stats"].tolist()
    assert [found[name] / 100 for name in METRICS] == pytest.approx(expected, abs=1e-12)
    assert judge(annotations, results, image_ids, categories) == pytest.approx(expected, abs=1e-12)


def as_detections(truth, score=1.0):
    return [{"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": score}
            for one in truth if not one["iscrowd"]]


def small(tmp_path, change=None):
    data = build_data(config(write_coco(tmp_path, (5, 5), change=change)), "cpu")
    source = coco_folder(tmp_path)
    truth = [one for found in source.truth.values() for one in found]
    return truth, [one.image_id for one in source.annotations], data


def test_ground_truth_scores_one_hundred_and_no_detections_score_zero(tmp_path):
    truth, image_ids, data = small(tmp_path)
    assert average_precision(truth, as_detections(truth), image_ids, data.info.categories)["ap"] == pytest.approx(100)
    nothing = average_precision(truth, [], image_ids, data.info.categories)
    assert nothing["ap"] == 0 and nothing["ap_large"] == -1  # there is no large box


@pytest.mark.parametrize("first", [0, -1000])
def test_the_numbers_of_the_annotations_do_not_change_the_score(tmp_path, first):
    def change(content):
        for place, one in enumerate(content["annotations"]):
            one["id"] = first + place

    truth, image_ids, data = small(tmp_path, change)
    assert min(one["id"] for one in truth) == first
    assert average_precision(truth, as_detections(truth), image_ids, data.info.categories)["ap"] == pytest.approx(100)


def test_crowd_boxes_do_not_change_the_score(tmp_path):
    truth, image_ids, data = small(tmp_path)
    crowded = [dict(one, iscrowd=int(place == 0)) for place, one in enumerate(truth)]
    on_it = as_detections(truth)  # one of them is on the crowd
    for results in (on_it, on_it[1:]):
        assert average_precision(crowded, results, image_ids, data.info.categories)["ap"] == pytest.approx(100)


def test_random_detections_get_the_same_numbers_from_pycocotools(tmp_path):
    truth, image_ids, data = small(tmp_path)
    generator = torch.Generator().manual_seed(0)
    results = []
    for one in as_detections(truth):
        shift = (torch.rand(4, generator=generator) * 8 - 4).tolist()
        box = [max(0.5, a + b) for a, b in zip(one["bbox"], shift, strict=True)]
        results.append(one | {"bbox": box, "score": float(torch.rand(1, generator=generator))})
    ours = average_precision(truth, results, image_ids, data.info.categories)
    theirs = judge(truth, results, image_ids, data.info.categories)
    assert [ours[name] / (100 if ours[name] >= 0 else 1) for name in METRICS] == pytest.approx(theirs, abs=1e-12)


def test_every_category_id_survives_the_round_trip():
    categories = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    labels = torch.arange(1, 81)
    found = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0]]).repeat(80, 1), "scores": torch.ones(80), "labels": labels}
    results = standard_results([found], [17], categories)
    assert [one["category_id"] for one in results] == categories and results[0]["bbox"] == [1.0, 2.0, 3.0, 6.0]
    json.dumps(results)


@needs("coco_tiny")
def test_ground_truth_of_both_real_splits_scores_one_hundred_with_or_without_its_crowds():
    data = build_data(config(REAL, "DATASET.TYPE", "coco_tiny"), "cpu")
    assert data.info.num_classes == 80 and data.info.num_train == 21 and len(data.sources["test"][1]) == 31
    for split, crowded in (("train2017", 1), ("val2017", 5)):
        source = coco_folder(Path(REAL) / "coco_tiny", split)
        truth = [one for found in source.truth.values() for one in found]
        image_ids = [one.image_id for one in source.annotations]
        crowds = [one | {"iscrowd": 0} for one in truth if one["iscrowd"]]
        assert len(crowds) == crowded
        for results, ap in ((as_detections(truth), 100), (as_detections(truth + crowds), 100), ([], 0)):
            found = average_precision(truth, results, image_ids, data.info.categories)
            assert found["ap"] == pytest.approx(ap)  # detections on crowds do not count
