"""Detectors learn real images of COCO; minutes of training, for which the folder of real data is needed."""

import json
from pathlib import Path

import pytest

from mdistiller.config import load_cfg
from mdistiller.engine.setup import train
from tests.data.support import REAL, needs

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "coco_tiny"
PAIR = {24577, 425988}  # two training images
pytestmark = [pytest.mark.slow, needs("coco_tiny")]


def only(folder, image_ids):
    """A folder of COCO's format with these real training images, for training and testing."""
    source = Path(REAL) / "coco_tiny"
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    content["images"] = [one for one in content["images"] if one["id"] in image_ids]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in image_ids]
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).symlink_to(source / "train2017")
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """A function that trains a config on the two images and returns its summary and the lines of its metrics.jsonl."""
    place = tmp_path_factory.mktemp("pair")
    root = only(place / "few", PAIR)

    def run(config, steps, *opts):
        words = ["DATASET.ROOT", str(root), "DATASET.MIN_SIZES", "[128]", "SOLVER.LR", 0.01, "SOLVER.MAX_ITER", steps,
                 "SOLVER.EVAL_PERIOD", 40, "LOG.PREFIX", str(place), "EXPERIMENT.NAME", config.replace("/", "_"), *opts]
        summary = train(load_cfg(CONFIGS / f"{config}.yaml", words))
        folder = place / "distill" / config.replace("/", "_")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return summary, [json.loads(line) for line in lines], folder / "student_latest.pth"

    return run


@pytest.fixture(scope="module")
def teacher(learn):
    summary, _, checkpoint = learn("vanilla/r18", 80)
    assert summary["last_ap50"] >= 90
    return checkpoint


@pytest.mark.parametrize("method", ["vanilla", "kd", "ea_kd"])
def test_two_images_are_overfitted(learn, teacher, method):
    opts = [] if method == "vanilla" else ["DISTILLER.TEACHER_CHECKPOINT", str(teacher)]
    summary, epochs, _ = learn(f"{method}/r18_mv2", 200, *opts)
    assert summary["best_ap50"] >= 90
    if method != "vanilla":
        assert epochs[-1]["train_kd"] < epochs[0]["train_kd"] / 5


def test_eight_images_are_partly_learnt(tmp_path):
    content = json.loads((Path(REAL) / "coco_tiny" / "annotations" / "instances_train2017.json").read_text())
    first = {one["id"] for one in sorted(content["images"], key=lambda one: one["id"])[:8]}
    opts = ["DATASET.ROOT", str(only(tmp_path / "few", first)), "DATASET.MIN_SIZES", "[128]", "SOLVER.MAX_ITER", 400,
            "SOLVER.EVAL_PERIOD", 400, "LOG.PREFIX", str(tmp_path / "o")]
    assert train(load_cfg(CONFIGS / "vanilla" / "r18.yaml", opts))["last_ap50"] >= 25
