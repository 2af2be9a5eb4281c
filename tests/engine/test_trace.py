"""The measurements of a fixed part of the training images after each epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.distillers.ea import entropy
from mdistiller.engine.reopen import open_run
from mdistiller.engine.run_folder import RunFolder
from mdistiller.engine.setup import build_run
from mdistiller.engine.trace import balanced_subset
from mdistiller.engine.trainer import Trainer
from mdistiller.errors import UserError
from tests.engine.support import run

EPOCHS = ["SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [1], "LOG.ENTROPY_TRACE", 25]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return run(tmp_path_factory.mktemp("traced"), "EA-KD", *EPOCHS)


def test_a_subset_is_balanced_and_contained_in_larger_ones():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 10)
    for number in (3, 9, 12):
        counts = np.bincount(labels[balanced_subset(labels, number)], minlength=3)
        assert counts.sum() == number and counts[1] == min(3, number // 3) and abs(counts[0] - counts[2]) <= 1
    assert set(balanced_subset(labels, 9)) <= set(balanced_subset(labels, 12))
    assert len(balanced_subset(labels, 1000)) == 23


def test_every_epoch_has_one_file_of_the_same_images(traced):
    files = sorted((traced / "entropy_trace").iterdir())
    assert [file.name for file in files] == ["epoch_1.npz", "epoch_2.npz"]
    first, last = (np.load(file) for file in files)
    np.testing.assert_array_equal(first["index"], last["index"])
    np.testing.assert_array_equal(first["entropy_teacher"], last["entropy_teacher"])
    assert len(first["index"]) == 25 and set(np.bincount(first["target"])) == {2, 3}
    assert not np.array_equal(first["entropy_student"], last["entropy_student"])


def test_what_a_killed_process_left_half_written_is_removed(traced, tmp_path):
    folder = Path(shutil.copytree(traced, tmp_path / traced.parent.name / traced.name))
    left = folder / ".latest.pth.a1b2c3d4", folder / "entropy_trace" / ".epoch_1.npz.a1b2c3d4"
    for path in left:
        path.touch()
    run(tmp_path, "EA-KD", *EPOCHS, resume=True)
    assert not any(path.exists() for path in left) and len(list((folder / "entropy_trace").iterdir())) == 2


def test_the_last_epoch_is_measured_on_the_saved_student(traced):
    run = open_run(traced, "latest", ["DEVICE", "cpu"])
    data, distiller = run.data, run.distiller
    trace = np.load(traced / "entropy_trace" / "epoch_2.npz")
    with torch.no_grad():
        logits = torch.cat([distiller(batch["image"]) for batch in data.plain_batches(trace["index"])])
    np.testing.assert_allclose(trace["entropy_student"], entropy(logits, 3.0).numpy(), rtol=1e-5)
    bound = np.log(10)
    weight = trace["entropy_teacher"] * (1 + trace["entropy_student"] / bound) / 2
    np.testing.assert_allclose(trace["weight"], weight, rtol=1e-5)
    assert (trace["kd_loss"] >= 0).all()


def test_plain_images_are_the_central_view_of_the_augmentation(traced):
    data = open_run(traced, "latest", ["DEVICE", "cpu"]).data
    index = np.array([5, 2, 7])
    (batch,) = data.plain_batches(index)
    middle = torch.full((3,), 4 * 18 + 4 * 2)  # a window that starts at the padding of 4, not mirrored
    torch.testing.assert_close(batch["image"], data.image_at(torch.from_numpy(index), middle))
    assert batch["index"].tolist() == [5, 2, 7] and batch["target"].tolist() == data.labels[index].tolist()


def test_no_trace_is_written_by_default(tmp_path):
    assert not (run(tmp_path, "EA-KD", "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [1]) / "entropy_trace").exists()


@pytest.mark.parametrize(("config", "unit"), [("digits_detection/ea_kd/r18_mv2", "proposals"),
                                              ("words/ea_fkl/tiny", "tokens")])
def test_samples_that_are_no_images_are_refused_before_the_first_step(config, unit, tmp_path):
    cfg = load_cfg(f"configs/{config}.yaml", ["LOG.ENTROPY_TRACE", 10, "DEVICE", "cpu"])
    built = build_run(cfg, torch.device("cpu"), weights=False)
    with pytest.raises(UserError, match=f"LOG.ENTROPY_TRACE: images are traced, {unit} are not; expected 0, found 10"):
        Trainer(built, RunFolder(tmp_path))
