"""Measurements of runs of two epochs on digits agree with the runs."""

import base64
import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import calinski_harabasz_score

from mdistiller.analysis import measure, networks, samples
from mdistiller.analysis.samples import write_samples
from mdistiller.data import build_data
from mdistiller.engine import setup
from mdistiller.engine.reopen import evaluate_run
from mdistiller.errors import UserError
from mdistiller.runs.records import RunRecord
from tests.engine.support import command, few_test_images, run

SHORT = ["SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [1], "LOG.ENTROPY_TRACE", 40, "LOG.SAVE_CHECKPOINT_FREQ", 1,
         "DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_CHECKPOINT", "checkpoints/digits/resnet20.pth"]
OPTIONS = measure.Options(("DEVICE", "cpu"), points=3, images=20)


@pytest.fixture(scope="module", autouse=True)
def few():
    with few_test_images():
        yield


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    found = {}
    for method in ("KD", "EA-KD"):
        path = run(tmp_path_factory.mktemp(method), method, *SHORT)
        summary = json.loads((path / "summary.json").read_text())
        found[method] = [RunRecord(path, {"DISTILLER.TYPE": method}, summary, {})]
    return found


def test_segments_average_to_the_accuracy_of_the_run(methods, monkeypatch):
    nothing = np.zeros((2, 2)), {"embedding": 1.0, "features": 2.0}
    monkeypatch.setattr(measure.networks, "embed", lambda *args: nothing)  # t-SNE takes seconds
    rows = measure.high_entropy_teacher(methods, OPTIONS)["segments"]
    sizes = [len(part) for part in np.array_split(np.arange(188), 10)]  # test images
    for name, (one,) in methods.items():
        accuracy = [row["top1"] for row in rows if row["network"] == name]
        assert np.average(accuracy, weights=sizes) == pytest.approx(one.summary["last_top1"])
    edges = [(row["from_entropy"], row["to_entropy"]) for row in rows if row["network"] == "Teacher"]
    assert all(low <= high for low, high in edges) and edges == sorted(edges)


def test_segments_without_images_are_empty():
    rows = measure._segment_rows("KD", "KD", [(np.arange(4.0), np.ones(4, bool))])
    assert [row["to_entropy"] for row in rows[:4]] == [0, 1, 2, 3] and np.isnan([row["top1"] for row in rows[4:]]).all()


def test_shares_sum_to_a_hundred_and_weights_move_the_loss_to_high_entropy(methods):
    rows = measure.loss_shares(methods, OPTIONS)["shares"]
    at = {(row["method"], row["epoch"], row["quartile"]): row["share"] for row in rows}
    for name in methods:
        for epoch in (1, 2):
            assert sum(at[name, epoch, quartile] for quartile in (1, 2, 3, 4)) == pytest.approx(100)
    assert at["EA-KD", 1, 4] > at["KD", 1, 4] and at["EA-KD", 1, 1] < at["KD", 1, 1]


def test_boxes_are_of_a_tenth_of_the_traced_images(methods):
    rows = measure.entropy_boxes(methods, OPTIONS)["boxes"]
    assert len(rows) == 2 * 2 * 2 and {row["samples"] for row in rows} == {4}
    assert all(row["low"] <= row["median"] <= row["high"] <= np.log(10) + 1e-6 for row in rows)


def test_losses_of_a_batch_are_sorted_by_teacher_entropy_and_shared_by_weight_times_loss(methods):
    rows = measure.sample_losses(methods, OPTIONS)["samples"]
    assert len(rows) == measure.BATCH and rows == sorted(rows, key=lambda row: row["entropy_teacher"])
    weighted = np.array([row["weight"] * row["kd_loss"] for row in rows])
    np.testing.assert_allclose([row["weighted_share"] for row in rows], 100 * weighted / weighted.sum(), rtol=1e-5)


def test_the_middle_of_a_surface_is_the_loss_of_the_saved_student(methods):
    content = measure.surfaces(methods, OPTIONS)
    rows, grids = content["surfaces"], content["surfaces_grid"]
    assert [(row["network"], row["epoch"]) for row in rows] == [
        ("Teacher", 0), ("KD", 1), ("KD", 2), ("EA-KD", 1), ("EA-KD", 2)]
    assert grids["KD|2"].shape == (3, 3) and rows[2]["mean"] == pytest.approx(grids["KD|2"].mean())
    assert rows[0]["area_difference"] == 0 and grids["Teacher|0"][1, 1] < 0.5 < grids["KD|1"][1, 1]


def test_accuracy_over_a_key_has_the_variance_of_its_means():
    def made_up(value, top1):
        return RunRecord("run", {"DKD.BETA": value}, {"last_top1": top1}, {})

    runs = [made_up(1.0, 70.0), made_up(1.0, 72.0), made_up(4.0, 73.0), made_up(8.0, 75.0)]
    rows = measure.accuracy_over({"DKD": runs}, OPTIONS)["values"]
    assert [(row["value"], row["top1"], row["seeds"]) for row in rows] == [(1, 71, 2), (4, 73, 1), (8, 75, 1)]
    assert rows[0]["variance"] == pytest.approx(4.0) and rows[0]["std"] == pytest.approx(2**0.5)


def test_time_per_batch_comes_from_images_per_second():
    runs = [RunRecord("run", {"SOLVER.BATCH_SIZE": 64}, {"last_top1": 70.0, "images_per_second": rate},
                      {"device": "cpu"}) for rate in (320.0, 640.0, 3200.0)]
    (row,) = measure.speed({"KD": runs}, OPTIONS)["speed"]
    assert row["ms_per_batch"] == 100.0 and row["seeds"] == 3


@pytest.mark.parametrize("rate", [None, 0.0, -1.0])
def test_a_run_without_a_rate_is_named(rate):
    runs = [RunRecord("run", {"SOLVER.BATCH_SIZE": 64}, {"last_top1": 70.0, "images_per_second": rate}, {})]
    with pytest.raises(UserError, match="run/summary.json: images_per_second: expected a number above 0"):
        measure.speed({"KD": runs}, OPTIONS)


def test_the_index_is_of_the_points_that_are_shown():
    draw = np.random.default_rng(0)
    feats, target = draw.normal(size=(20, 5)), np.arange(20) % 2
    points, index = networks.embed(feats, target)
    assert points.shape == (20, 2) and index["embedding"] == pytest.approx(calinski_harabasz_score(points, target))
    with pytest.raises(UserError, match="at least 8"):
        networks.embed(feats[:4], target[:4])
    for labels in (np.arange(20), np.zeros(20, int)):
        with pytest.raises(UserError, match="t-SNE of 20 images of (20|1) classes: expected two classes or more"):
            networks.embed(feats, labels)


def test_a_run_opened_with_its_teacher_evaluates_as_it_did(methods):
    path = methods["EA-KD"][0].path
    _, data, distiller = networks.open_with_teacher(path, "latest", OPTIONS.opts)
    out = networks.outputs_of(distiller.teacher, data.eval_batches("test"), 3.0)
    assert 100 * out.correct.mean() == pytest.approx(json.loads((path / "run.json").read_text())["teacher_top1"])


def test_both_epochs_of_a_run_are_evaluated_on_data_that_is_read_once(methods, monkeypatch):
    run, read = methods["EA-KD"][0], []
    monkeypatch.setattr(setup, "build_data", lambda *of: read.append(of) or build_data(*of))
    found = evaluate_run(run.path, OPTIONS.opts)
    assert {epoch: one["top1"] for epoch, one in found.items()} == {epoch: run.result(epoch) for epoch in found}
    assert list(found) == ["last", "best"] and len(read) == 1


def test_figures_are_not_measured_with_another_teacher_a_random_one_or_none(methods, tmp_path):
    def refusal():
        with pytest.raises(UserError) as refused:
            networks.open_with_teacher(path, "latest", OPTIONS.opts)
        return str(refused.value)

    path = shutil.copytree(methods["KD"][0].path, tmp_path / "run")
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"teacher_sha256": "0" * 64}))
    assert refusal().endswith(f"resnet20.pth: not the teacher that {path} was trained with (SHA-256)")
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("checkpoints/digits/resnet20.pth", "random"))
    assert refusal() == f"{path}: its teacher had random weights, which are not saved"
    (path / "config.yaml").write_text(config.replace("TYPE: KD", "TYPE: NONE"))
    assert refusal() == f"{path}: trained without a teacher; this figure compares student and teacher"


def test_the_command_keeps_finished_files_and_names_missing_inputs(methods, tmp_path):
    folders = [one.path for (one,) in methods.values()]
    words = ["tools/analyze.py", "--figure", "5", "--runs", *folders, "--output", tmp_path]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / "figure_5_shares.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16
    metadata = json.loads((tmp_path / "figure_5.json").read_text())
    assert [one["method"] for one in metadata["runs"]] == ["KD", "EA-KD"] and "tools/analyze.py" in metadata["command"]
    assert "measured already" in command(*words).stdout
    lacking = command("tools/analyze.py", "--figure", "7", "--runs", *folders, "--output", tmp_path)
    assert lacking.returncode == 2 and "no finished run of DKD, EA-DKD" in lacking.stderr


def test_classes_average_to_the_accuracy_of_the_run_and_the_hardest_images_are_kept(methods):
    for name, (one,) in methods.items():
        content = json.loads(write_samples(one.path, 5, opts=("DEVICE", "cpu")).read_text())
        count = np.array(content["count"])
        assert count.sum() == 188 and content["classes"] == list("0123456789")
        assert np.average(content["student"], weights=count) == pytest.approx(one.summary["last_top1"])
        losses = [image["loss"] for image in content["hardest"]]
        assert len(losses) == 5 and losses == sorted(losses, reverse=True) and losses[0] > one.summary["last_loss"]
        with Image.open(io.BytesIO(base64.b64decode(content["hardest"][0]["image"]))) as picture:
            assert picture.size == (32, 32)
        assert content["weighted"] == name.startswith("EA-")
    with pytest.raises(UserError, match="nowhere.pth: no such checkpoint"):
        write_samples(one.path, 5, "nowhere", ("DEVICE", "cpu"))


def test_a_shown_image_has_the_pixels_of_the_data(methods):
    (one,) = methods["KD"]
    cfg, data, distiller = networks.open_with_teacher(one.path, "latest", ("DEVICE", "cpu"))
    rows = samples.measure(cfg, distiller, data.eval_batches("test"))
    index = samples.hardest(rows["loss"], 1)[0]
    content = json.loads(write_samples(one.path, 1, opts=("DEVICE", "cpu")).read_text())
    (image,) = content["hardest"]
    assert (image["index"], image["target"]) == (index, rows["target"][index])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["image"]))), float).mean() / 255
    mean, std = data.info.mean[0], data.info.std[0]
    batch = next(b for b in data.eval_batches("test") if index in b["index"])
    pixels = batch["image"][batch["index"].tolist().index(index)].float().mean().item() * std + mean
    assert shown == pytest.approx(pixels, abs=0.01)


def test_samples_by_hand():
    rows = {"target": np.array([0, 0, 2]), "student": np.array([0, 1, 2]), "teacher": np.array([0, 0, 0])}
    assert samples.by_class(rows, 3) == {"count": [2, 0, 1], "student": [50, None, 100], "teacher": [100, None, 0]}
    assert samples.hardest(np.array([1.0, 3.0, 3.0, 2.0]), 3) == [1, 2, 3]
