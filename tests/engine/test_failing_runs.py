"""Runs that fail, and methods whose losses or modules do nothing."""

import json
import math

import pytest
import torch

from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, Distiller, register
from mdistiller.engine.meters import Meters
from mdistiller.engine.setup import training
from mdistiller.engine.trainer import Trainer
from mdistiller.errors import NotFinite, RunError
from tests.engine.support import metrics, run, small_cfg, weights


def test_a_non_finite_loss_is_named_and_ends_the_run_without_harming_what_was_saved(tmp_path):
    @register("TOY-EXPLODES")
    class Explodes(Distiller):
        """Finite in the first epoch only."""

        def sample_losses(self, student, teacher, epoch, **batch):
            return {"boom": student.logits.sum(dim=1) * (float("inf") if epoch > 1 else 0.0)}

    try:
        with pytest.raises(RunError, match="TOY-EXPLODES: loss boom is not finite at epoch 2, step 1"):
            run(tmp_path, "TOY-EXPLODES")
    finally:
        del DISTILLERS["TOY-EXPLODES"], DISTILLERS["EA-TOY-EXPLODES"]
    folder = next(tmp_path.glob("*/*"))
    summary, words = json.loads((folder / "summary.json").read_text()), "loss boom is not finite at epoch 2, step 1"
    assert summary["status"] == "failed" and words in summary["reason"]
    assert words in (folder / "train.log").read_text().splitlines()[-1]
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    assert torch.load(folder / "latest.pth", weights_only=True)["epoch"] == 2


@pytest.fixture
def unruly():
    """A method with one bad step, a loss that is 0 and a module that nothing uses."""

    @register("TOY-UNRULY")
    class Unruly(Distiller):
        """Infinite in the second step of the second epoch only."""

        def build(self, cfg):
            self.idle, self.calls = torch.nn.Linear(2, 2), 0

        def sample_losses(self, student, teacher, epoch, **batch):
            self.calls += 1
            bad = float("inf") if self.calls == 5 else 0.01
            return {"boom": student.logits.square().sum(dim=1) * bad, "nothing": student.logits.sum(dim=1) * 0}

    yield "TOY-UNRULY"
    del DISTILLERS["TOY-UNRULY"], DISTILLERS["EA-TOY-UNRULY"]


def test_the_batch_of_a_non_finite_loss_is_saved_for_replay(unruly, tmp_path):
    with pytest.raises(NotFinite, match="loss boom is not finite at epoch 2, step 2.*nonfinite.pt"):
        run(tmp_path, unruly)
    folder = next(tmp_path.glob("*/*"))
    metadata = torch.load(folder / "nonfinite.pt", weights_only=True)
    assert (metadata["method"], metadata["terms"], metadata["epoch"], metadata["step"]) == (unruly, ["boom"], 2, 2)
    data = build_data(small_cfg(tmp_path, unruly), torch.device("cpu"))
    batch = list(data.train_batches(2))[1]
    assert torch.equal(metadata["index"], batch["index"])


def test_steps_that_were_found_finite_are_not_read_again(monkeypatch):
    rows = []
    monkeypatch.setattr("mdistiller.engine.meters.sum_over_ranks", lambda bad: rows.append(len(bad)) or bad)
    meters = Meters(100, torch.device("cpu"))
    for step in range(100):  # a run on a CPU asks after every step
        meters.write(step, meters.row({"ce": torch.tensor(math.inf if step == 99 else 1.0)}, 4, {}, {}), 4)
        assert meters.first_nonfinite(step) == ((99, ["ce"]) if step == 99 else None)
    assert max(rows) <= 2


def test_a_rank_that_joins_a_resumed_run_has_measured_nothing_and_knows_the_names():
    """Ranks add their measurements, at the end of an epoch without another step, so all need the same columns."""
    first, joining = (Meters(2, torch.device("cpu")) for _ in range(2))
    first.write(0, first.row({"ce": torch.tensor(math.inf)}, 4, {"top1": torch.ones(4, dtype=torch.bool)}, {}), 4)
    joining.load_state_dict(first.state_dict())
    joining.clear()
    assert joining.names == first.names and joining.rows.shape == first.rows.shape and joining.samples() == 0
    assert joining.first_nonfinite(1) is None and first.first_nonfinite(1) == (0, ["ce"]) and first.samples() == 4


def test_non_finite_steps_are_skipped_up_to_the_allowed_number(unruly, tmp_path):
    folder = run(tmp_path, unruly, "SOLVER.SKIP_NONFINITE", 1)
    assert all(math.isfinite(record["train_loss"]) for record in metrics(folder)) and len(metrics(folder)) == 3
    assert "epoch 2, step 2: the loss is not finite: step skipped" in (folder / "train.log").read_text()
    assert torch.load(folder / "latest.pth", weights_only=True)["skipped"] == 1


def test_idle_losses_and_parameters_are_reported_once(unruly, tmp_path):
    log = (run(tmp_path, unruly, "SOLVER.SKIP_NONFINITE", 1) / "train.log").read_text()
    assert log.count("the loss nothing was 0 in every step") == 1
    assert log.count("2 learnable parameters influence no loss (idle.weight, ...)") == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_diverging_last_update_fails_the_run_and_is_not_saved(tmp_path, epochs):
    with pytest.raises(NotFinite, match="test_loss is not finite after epoch 1"):
        run(tmp_path, "EA-KD", "SOLVER.BATCH_SIZE", 300, "SOLVER.LR", 1e30, "SOLVER.EPOCHS", epochs)
    folder = next(tmp_path.glob("*/*"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not list(folder.glob("*.pth")) and not (folder / "metrics.jsonl").exists()


def test_a_run_that_failed_in_its_first_epoch_and_is_tried_again_has_not_failed(tmp_path, monkeypatch):
    """If the second try is killed, a sweep continues it; it shows and keeps what failed."""
    def fails(self, batch):
        raise RunError("out of memory")

    with monkeypatch.context() as at_first, pytest.raises(RunError):
        at_first.setattr(Trainer, "_step", fails)
        run(tmp_path)
    (summary,) = tmp_path.glob("*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "failed"
    steps = training(small_cfg(tmp_path), resume=True)
    for _ in range(2):
        next(steps)
    assert json.loads(summary.read_text())["status"] == "running"
    steps.close()
