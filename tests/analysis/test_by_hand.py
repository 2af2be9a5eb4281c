"""The rows of the figures from outputs and traces that are written down here, compared with numbers worked out by hand.

The runs behind them are pretended; `test_measure` has real ones.
"""

import base64
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.analysis import measure, samples
from mdistiller.analysis.networks import Outputs
from mdistiller.analysis.token_weights import token_weights
from mdistiller.runs.records import RunRecord
from mdistiller.traces import FOLDER

OPTIONS = measure.Options()
PLACES = np.arange(10)  # one image in each segment


def record(path, method="KD"):
    return RunRecord(path, {"DISTILLER.TYPE": method}, {}, {})


def traced(folder, **epochs):
    """A run with a trace of each epoch, from (entropies of the student, of the teacher, losses, weights)."""
    (folder / FOLDER).mkdir(parents=True)
    for epoch, arrays in epochs.items():
        names = ("entropy_student", "entropy_teacher", "kd_loss", "weight")
        np.savez(folder / FOLDER / f"{epoch}.npz", **dict(zip(names, map(np.array, arrays), strict=True)))
    return record(folder)


@pytest.fixture
def opened(monkeypatch):
    """opened(cfg=..., data=..., distiller=...): what every run is opened as; returns the names of its checkpoints."""
    def pretend(cfg=None, data=None, distiller=None):
        asked = []

        def open_with_teacher(path, checkpoint, opts, task="classification"):
            asked.append(checkpoint)
            return cfg, data, distiller

        monkeypatch.setattr(measure.networks, "open_with_teacher", open_with_teacher)
        return asked

    return pretend


def test_boxes_are_of_the_samples_of_which_the_teacher_is_least_sure(tmp_path):
    of_student, of_teacher = np.arange(20.0)[::-1], np.arange(20.0)
    run = traced(tmp_path, **{f"epoch_{epoch}": (epoch * of_student, of_teacher, of_teacher, of_teacher)
                              for epoch in range(1, 11)})
    rows = measure.entropy_boxes({"KD": [run, record(tmp_path / "another seed")]}, OPTIONS)["boxes"]
    assert [row["epoch"] for row in rows[::2]] == [1, 2, 4, 5, 6, 7, 9, 10]  # eight of the ten
    # a tenth are two samples, the last ones, with 18 and 19 of the teacher, and 1 and 0 of the student in epoch 1
    medians = [(row["network"], row["epoch"], row["median"]) for row in rows]
    assert medians[:2] == [("KD", 1, 0.5), ("Teacher", 1, 18.5)]
    assert medians[-2:] == [("KD", 10, 5.0), ("Teacher", 10, 18.5)]


def test_shares_of_the_loss_are_weighted_and_averaged_over_the_seeds_of_common_epochs(tmp_path):
    entropy, ones = [0.0, 1.0, 2.0, 3.0], [1.0] * 4
    first = traced(tmp_path / "0", epoch_1=(ones, entropy, ones, [1.0, 1.0, 2.0, 6.0]), epoch_2=(ones,) * 4)
    second = traced(tmp_path / "1", epoch_1=(ones, entropy, [3.0, 1.0, 1.0, 2.0], [1.0, 1.0, 2.0, 2.0]))
    rows = measure.loss_shares({"KD": [first, second]}, OPTIONS)["shares"]
    # 1, 1, 2, 6 and 3, 1, 2, 4 of ten: means of 10 and 30, 10 and 10, 20 and 20, 60 and 40 percent
    assert [(row["epoch"], row["quartile"], row["share"]) for row in rows] == [
        (1, 1, pytest.approx(20)), (1, 2, pytest.approx(10)), (1, 3, pytest.approx(20)), (1, 4, pytest.approx(50))]
    assert [row["std"] for row in rows] == pytest.approx([math.sqrt(200), 0, 0, math.sqrt(200)])


def test_losses_of_a_batch_are_those_of_the_first_saved_epoch(tmp_path, monkeypatch, opened):
    for epoch in (40, 80):
        (tmp_path / f"epoch_{epoch}.pth").touch()
    asked = opened(data=SimpleNamespace(labels=np.zeros(2, int), plain_batches=lambda index: None))
    arrays = {"entropy_teacher": [2.0, 1.0], "entropy_student": [0.5, 0.25], "kd_loss": [3.0, 1.0],
              "weight": [1.0, 5.0]}
    monkeypatch.setattr(measure, "measure", lambda *_: {key: np.array(values) for key, values in arrays.items()})
    rows = measure.sample_losses({"EA-KD": [record(tmp_path, "EA-KD")]}, OPTIONS)["samples"]
    assert asked == ["epoch_40"] and [row["epoch"] for row in rows] == [40, 40]
    # losses 1 and 3 of 4, and with the weights 5 and 3 of 8
    assert [(row["entropy_teacher"], row["loss_share"], row["weighted_share"]) for row in rows] == [
        (1, 25, 62.5), (2, 75, 37.5)]


def outputs(margins, right):
    """Outputs for two classes: the larger the margin between the logits, the surer."""
    logits = np.stack([np.array(margins, np.float32), np.zeros(len(margins), np.float32)], 1)
    return Outputs(logits, logits, np.where(right, 0, 1), 1.0)


TEACHER = outputs(10 - PLACES, PLACES < 4)  # surest of the first image, right in the first four
STUDENT = outputs(1 + PLACES, PLACES % 2 == 0)  # surest of the last image, right in every other one


@pytest.fixture
def networks(monkeypatch, opened):
    opened(distiller=SimpleNamespace(teacher=TEACHER, deployed=lambda: STUDENT, weighted=False))
    monkeypatch.setattr(measure, "_outputs", lambda network, cfg, data: network)
    monkeypatch.setattr(measure, "_tsne", list)


def test_accuracies_are_by_the_teachers_entropy_from_low_to_high(tmp_path, networks):
    content = measure.high_entropy_teacher({"KD": [record(tmp_path)]}, OPTIONS)
    accuracy = {name: [row["top1"] for row in content["segments"] if row["network"] == name]
                for name in ("Teacher", "KD")}
    assert accuracy == {"Teacher": [100] * 4 + [0] * 6, "KD": [100, 0] * 5}
    assert content["segments"][0]["to_entropy"] < content["segments"][9]["from_entropy"]
    ((name, epoch, shown, ranked),) = content["tsne"]
    assert (name, epoch, shown) == ("Teacher", 0, TEACHER) and ranked.argmax() == 9


def test_accuracies_of_student_and_teacher_are_by_the_students_entropy(tmp_path, networks):
    (tmp_path / "epoch_3.pth").touch()
    content = measure.high_entropy_students({"KD": [record(tmp_path)]}, OPTIONS)
    accuracy = {name: [row["top1"] for row in content["segments"] if row["network"] == name]
                for name in ("Teacher", "KD")}
    assert accuracy == {"Teacher": [0] * 6 + [100] * 4, "KD": [0, 100] * 5}
    ((name, epoch, shown, ranked),) = content["tsne"]
    assert (name, epoch, shown) == ("KD", 3, STUDENT) and ranked.argmax() == 0


def test_students_with_weights_are_marked_by_weight(tmp_path, networks, opened):
    def weight(student, teacher):
        return student[:, 0] + 2 * teacher[:, 0]

    opened(distiller=SimpleNamespace(teacher=TEACHER, deployed=lambda: STUDENT, weighted=True, sample_weight=weight))
    (student, teacher) = measure.students({"EA-KD": [record(tmp_path)]}, OPTIONS)["tsne"]
    assert student[3].tolist() == (1 + PLACES + 2 * (10 - PLACES)).tolist()
    assert teacher[:2] == ("Teacher", 0) and teacher[3].argmax() == 9


def test_surfaces_have_their_variance_and_the_area_that_the_teacher_has_more(tmp_path, monkeypatch, opened):
    (tmp_path / "epoch_5.pth").touch()
    batches = [{"target": torch.zeros(2)}, {"target": torch.zeros(1)}]
    data = SimpleNamespace(labels=np.zeros(3, int), plain_batches=lambda index: batches)
    opened(data=data, distiller=SimpleNamespace(teacher="teacher", deployed=lambda: "student"))
    # the teacher's loss is below 1.6 in half of the square of area 4, the student's everywhere
    grids = {"teacher": np.array([[0.6], [1.6], [2.6]]) + np.zeros(3), "student": np.ones((3, 3))}
    monkeypatch.setattr(measure, "loss_surface", lambda network, *_: grids[network])
    teacher, student = measure.surfaces({"DKD": [record(tmp_path)]}, OPTIONS)["surfaces"]
    assert (teacher["mean"], teacher["variance"]) == pytest.approx((1.6, 2 / 3)) and teacher["images"] == 3
    assert (teacher["area"], student["area"]) == pytest.approx((2, 4)) and student["level"] == 1.6
    assert (teacher["area_difference"], student["area_difference"]) == pytest.approx((0, -2))


def test_weights_of_two_tokens_in_two_sequences(tmp_path, opened):
    """With two words the bound is log 2. Both students are sure, or have no idea, of a token that the teacher is."""
    even, sure = [0.0, 0.0], [60.0, 0.0]
    logits = {"student": [[even, even], [sure]], "teacher": [[even, sure], [even]]}
    batches = [{"number": 0, "group": torch.tensor([0, 0]), "ids": torch.zeros(1, 5)},
               {"number": 1, "group": torch.tensor([0]), "ids": torch.zeros(1, 5)}]
    task = SimpleNamespace(vocabulary={"TEACHER": 2},
                           logits=lambda network, batch: torch.tensor(logits[network][batch["number"]]))
    opened(data=SimpleNamespace(eval_batches=lambda split: batches),
           distiller=SimpleNamespace(task=task, student="student", teacher="teacher"))
    content = token_weights({"EA-FKL": [record(tmp_path, "EA-FKL")]}, OPTIONS)
    one = math.log(2)
    # w = teacher / 2 (1 + student / log 2): both even 1, teacher sure 0, student sure 1/2, in units of log 2
    for key, weights in (("own|1|token", [1, 0, 0.5]), ("own|1|sequence", [0.5, 0.5]),
                         ("uniform|1|token", [1, 0, 1]), ("uniform|1|mean_weight", [0.5, 1])):
        np.testing.assert_allclose(content["weights"][f"EA-FKL, {key}"], np.array(weights) * one, atol=1e-6)
    (row,) = [row for row in content["spread"]
              if (row["student"], row["temperature"], row["level"]) == ("own", 1.0, "token")]
    assert (row["mean"], row["deviation"], row["q50"]) == pytest.approx((one / 2, one / 2, one / 2), abs=1e-6)
    assert row["percent"] == pytest.approx(100, abs=1e-3)


def test_samples_have_the_loss_and_entropies_of_the_right_network_and_the_paper_s_weight():
    even, nine_to_one = torch.zeros(1, 2), torch.tensor([[math.log(9), 0.0]])
    cfg = SimpleNamespace(EA=SimpleNamespace(TEMPERATURE=2.0))  # at which it is three to one
    distiller = SimpleNamespace(deployed=lambda: lambda image: (nine_to_one,), teacher=lambda image: (even,),
                                weighted=False)
    found = samples.measure(cfg, distiller, [{"image": None, "target": torch.tensor([1])}])
    entropy = math.log(4) - 0.75 * math.log(3)  # of three to one
    expected = {"loss": math.log(10), "entropy_student": entropy, "entropy_teacher": math.log(2),
                "weight": math.log(2) / 2 * (1 + entropy / math.log(2)), "target": 1, "student": 0, "teacher": 0}
    assert {key: found[key].item() for key in expected} == pytest.approx(expected, rel=1e-5)


def test_a_shown_image_lies_as_in_the_data():
    pixels = torch.arange(18).view(3, 2, 3) * 10  # two rows of three pixels
    info = SimpleNamespace(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    png = base64.b64decode(samples._png((pixels / 255 - mean) / std, info))
    with Image.open(io.BytesIO(png)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels.permute(1, 2, 0))
