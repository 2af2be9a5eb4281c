"""Complete runs and interrupted runs, from the config to the run folder."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from mdistiller.command import Interrupted, run_command
from mdistiller.data import build_data
from mdistiller.data.base import Data
from mdistiller.distillers import DISTILLERS, Distiller, register
from mdistiller.engine import log
from mdistiller.engine.optim import learning_rate
from mdistiller.engine.run_folder import CHECKPOINTS
from mdistiller.engine.setup import train
from mdistiller.engine.trainer import StopRequest, Trainer
from mdistiller.errors import UserError
from tests.engine.support import assert_same_weights, few_test_images, metrics, run, small_cfg, weights


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"))


def without_times(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def test_the_run_folder_contains_the_promised_files(unbroken):
    assert unbroken.name == "digits_ea-kd_resnet8_resnet8_s0"
    for name in ("config.yaml", "run.json", "metrics.jsonl", "summary.json", "latest.pth", "best.pth",
                 "student_best.pth", "student_latest.pth", "train.log"):
        assert (unbroken / name).stat().st_size > 0, name
    assert list((unbroken / "tb").glob("events*"))
    summary, records = json.loads((unbroken / "summary.json").read_text()), metrics(unbroken)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    log = (unbroken / "train.log").read_text()
    assert "the teacher resnet8 has random weights" in log and "ended" not in log and "reason" not in summary
    assert summary["status"] == "done" and summary["epoch"] == 3 and summary["seed"] == 0
    assert summary["last_top1"] == records[-1]["test_top1"]
    assert summary["best_top1"] == max(record["test_top1"] for record in records)
    assert records[summary["best_epoch"] - 1]["test_top1"] == summary["best_top1"]
    assert {"train_loss", "train_ce", "train_kd", "train_top1", "lr", "weight_mean", "weight_std",
            "entropy_teacher", "entropy_student", "test_top5", "test_loss"} <= records[0].keys()
    assert [record["lr"] for record in records] == pytest.approx([0.05, 0.05, 0.005])
    metadata = json.loads((unbroken / "run.json").read_text())
    assert torch.__version__.startswith(metadata["versions"]["torch"].split("+")[0])
    assert metadata["seed"] == 0 and metadata["command"] and metadata["device"].startswith("cpu")
    assert (metadata["num_classes"], metadata["num_train"]) == (10, 150)


def test_the_saved_student_is_the_student_inside_the_checkpoint(unbroken):
    whole, student = weights(unbroken), weights(unbroken, "student_latest.pth")
    assert {f"student.{key}" for key in student} == {key for key in whole if key.startswith("student.")}
    assert all(torch.equal(whole[f"student.{key}"], value) for key, value in student.items())


@pytest.mark.parametrize("epoch, step", [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(unbroken, tmp_path, monkeypatch, epoch, step):
    original = Trainer._step

    def stopping(self, batch):
        original(self, batch)
        if (self.epoch, self.step) == (epoch, step or 3):
            self.stop(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Interrupted) if (epoch, step) != (3, 0) else pytest.raises(Exception):
        run(tmp_path)
    monkeypatch.setattr(Trainer, "_step", original)
    stopped = json.loads(next(tmp_path.glob("*/*/summary.json")).read_text())
    assert (stopped["status"], stopped["reason"]) == ("interrupted", "interrupted by SIGTERM")
    folder = run(tmp_path, resume=True)
    assert "ended: interrupted by SIGTERM\n" in (folder / "train.log").read_text()
    assert_same_weights(folder, unbroken)
    assert_same_weights(folder, unbroken, "best.pth")
    assert without_times(metrics(folder)) == without_times(metrics(unbroken))


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path, monkeypatch):
    original, small, seen = Data.eval_batches, ("EA-KD", "DATASET.TEST.BATCH_SIZE", 64), []
    whole = run(tmp_path / "whole", *small)

    def stopping(self, *place):
        for batch in original(self, *place):
            seen.append(len(seen))
            if len(seen) == 8:  # the second of the three batches in epoch 2, as the teacher is measured first
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Data, "eval_batches", stopping)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", *small)
    folder = next(tmp_path.glob("cut/*/*"))
    state = torch.load(folder / "latest.pth", weights_only=True)
    assert len(seen) == 8 and (state["epoch"], state["step"]) == (2, 3) and len(metrics(folder)) == 1
    run(tmp_path / "cut", *small, resume=True)
    assert "resuming at epoch 2, its evaluation" in (folder / "train.log").read_text()
    assert_same_weights(folder, whole)
    assert_same_weights(folder, whole, "best.pth")
    assert without_times(metrics(folder)) == without_times(metrics(whole))


def test_an_evaluation_shows_a_bar_of_its_batches_on_the_first_rank(tmp_path, monkeypatch):
    bars, original = [], log.progress

    def shown(*words, **options):
        bars.append((words, original(*words, **options)))
        return bars[-1][1]

    monkeypatch.setattr(log, "progress", shown)
    with few_test_images():
        data = build_data(small_cfg(tmp_path, "EA-KD", "DATASET.TEST.BATCH_SIZE", 64), "cpu")
    for rank in range(2):
        batches = list(log.evaluated(data, "test", rank, 2))
        assert len(batches) == [2, 1][rank] and "target" in batches[0]
    assert [words for words, _ in bars] == [(2, "evaluating test", True), (1, "evaluating test", False)]
    bars.clear()
    run(tmp_path, "EA-KD", "SOLVER.EPOCHS", 1)
    assert [words[1] for words, _ in bars] == ["evaluating test"] * 2  # of the teacher, and of the student


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(unbroken, tmp_path):
    assert_same_weights(run(tmp_path / "a"), unbroken)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_weights(run(tmp_path / "b", "EA-KD", "EXPERIMENT.SEED", 1), unbroken)


def test_a_finished_run_is_not_overwritten_and_resuming_it_changes_nothing(unbroken):
    before = (unbroken / "latest.pth").read_bytes()
    with pytest.raises(UserError, match="already contains a run; add --resume"):
        run(unbroken.parents[1])
    run(unbroken.parents[1], resume=True)
    assert (unbroken / "latest.pth").read_bytes() == before and len(metrics(unbroken)) == 3


def test_other_settings_are_refused_by_key_and_the_message_names_the_way_out(unbroken):
    """With and without --resume, which would not help here: a circle of advice for a mistyped rate."""
    for resume in (False, True):
        with pytest.raises(UserError, match=r"other settings: SOLVER.LR \(0.05 there, 0.1 now\); set them as there to "
                                            "continue it, set EXPERIMENT.NAME, .* its own, or delete the folder$"):
            run(unbroken.parents[1], "EA-KD", "SOLVER.LR", 0.1, resume=resume)
    with pytest.raises(UserError, match=r"settings: DISTILLER.EA .*, DISTILLER.TYPE \('EA-KD' there, 'NONE' now\);"):
        run(unbroken.parents[1], "NONE", "EXPERIMENT.NAME", unbroken.name, resume=True)


def test_a_run_folder_that_was_moved_continues(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "other/place")
    run(tmp_path, "EA-KD", "EXPERIMENT.PROJECT", "other", "EXPERIMENT.NAME", "place", resume=True)
    with pytest.raises(UserError, match="already contains a run; add --resume"):
        run(tmp_path, "EA-KD", "EXPERIMENT.PROJECT", "other", "EXPERIMENT.NAME", "place")


@pytest.mark.parametrize("foreign, expected", [
    ({"settings": {"SOLVER.LR": 0.1, "EXPERIMENT.SEED": 1, "DEVICE": "cuda"}},
     r"is of a run with other settings: EXPERIMENT.SEED \(1 there, 0 now\), SOLVER.LR \(0.1 there, 0.05 now\)"),
    ({"settings": {"teacher_sha256": "a" * 64}},
     r"is of a run with other settings: teacher_sha256 \('a{64}' there, None now\)"),
    ({"settings": {}, "meters": {"names": None, "rows": None, "counts": torch.zeros(5), "progress": {}}},
     "does not hold the state of this run"),  # of a version that stored no settings
])
def test_the_checkpoint_of_another_run_is_refused(foreign, expected, unbroken, tmp_path):
    folder = Path(shutil.copytree(unbroken, tmp_path / unbroken.parent.name / unbroken.name))
    state = torch.load(folder / "latest.pth", weights_only=True)
    assert state["settings"]["SOLVER.LR"] == 0.05 and "DEVICE" not in state["settings"]
    torch.save(state | foreign, folder / "latest.pth")
    with pytest.raises(UserError, match=f"latest.pth: {expected}"):
        run(tmp_path, resume=True)
    assert without_times(metrics(folder)) == without_times(metrics(unbroken))


def test_a_run_that_is_refused_when_it_is_resumed_leaves_no_session(unbroken, tmp_path):
    folder = Path(shutil.copytree(unbroken, tmp_path / unbroken.parent.name / unbroken.name))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    before = [(folder / name).read_bytes() for name in ("config.yaml", "run.json")]
    for name in CHECKPOINTS:
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match="latest.pth"):
        run(tmp_path, "EA-KD", "LOG.TENSORBOARD_FREQ", 7, resume=True)
    assert [(folder / name).read_bytes() for name in ("config.yaml", "run.json")] == before


def test_with_a_validation_split_the_best_epoch_is_not_chosen_on_test_images(tmp_path):
    with pytest.raises(UserError, match="DATASET.TEST.ENABLED False: expected validation images"):
        run(tmp_path, "KD", "DATASET.TEST.ENABLED", False)
    folder = run(tmp_path, "KD", "DATASET.VAL_FRACTION", 0.2)
    summary, records = json.loads((folder / "summary.json").read_text()), metrics(folder)
    best = max(records, key=lambda record: (record["val_top1"], record["epoch"]))
    assert summary["selected_on"] == "val" and summary["best_epoch"] == best["epoch"]
    assert summary["best_top1"] == best["test_top1"]


def test_a_long_epoch_is_saved_within_and_continues_from_there(unbroken, tmp_path, monkeypatch):
    original = Trainer._step

    def dying(self, batch):
        if (self.epoch, self.step) == (2, 2):
            raise KeyError("killed")
        original(self, batch)

    monkeypatch.setattr(Trainer, "_step", dying)
    with pytest.raises(KeyError):
        run(tmp_path, "EA-KD", "LOG.SAVE_CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(Trainer, "_step", original)
    state = torch.load(next(tmp_path.glob("*/*/latest.pth")), weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 2)
    assert_same_weights(run(tmp_path, resume=True), unbroken)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_replaced_by_the_previous_one(unbroken, tmp_path, damage):
    folder = Path(shutil.copytree(unbroken, tmp_path / unbroken.parent.name / unbroken.name))
    content = bytearray((folder / "latest.pth").read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        (folder / "latest.pth").unlink()
    else:
        (folder / "latest.pth").write_bytes(content if damage == "flip" else content[: len(content) // 2])
    run(tmp_path, resume=True)
    assert_same_weights(folder, unbroken)
    assert without_times(metrics(folder)) == without_times(metrics(unbroken))
    if damage != "remove":
        assert "continuing from" in (folder / "train.log").read_text() and (folder / "damaged.pth").is_file()


def test_when_no_checkpoint_can_be_read_nothing_is_changed(unbroken, tmp_path):
    folder = Path(shutil.copytree(unbroken, tmp_path / unbroken.parent.name / unbroken.name))
    for name in ("latest.pth", "previous.pth"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match="latest.pth: not a checkpoint"):
        run(tmp_path, resume=True)
    assert {(folder / name).read_bytes() for name in ("latest.pth", "previous.pth")} == {b"damaged"}
    assert without_times(metrics(folder)) == without_times(metrics(unbroken))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_the_warning_of_a_cluster_and_a_closed_terminal_stop_a_run_like_sigterm(number, tmp_path, monkeypatch):
    original = Trainer._step

    def warned(self, batch):
        original(self, batch)
        if (self.epoch, self.step) == (2, 1):
            if number == signal.SIGHUP:  # from now on, writing to the terminal is an OSError
                os.close(keyboard)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_step", warned)
    keyboard, terminal = os.openpty()
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    with pytest.raises(SystemExit) as end, open(terminal, "w") as out, open(terminal, "w", closefd=False) as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        run_command(lambda: run(tmp_path) and None)
    monkeypatch.undo()
    signal.signal(number, before)
    assert end.value.code == 143
    state = torch.load(next(tmp_path.glob("*/*/latest.pth")), weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 1)


def test_an_ignored_hangup_stays_ignored():
    """As `nohup` leaves it to the run."""
    before, stop = signal.signal(signal.SIGHUP, signal.SIG_IGN), StopRequest()
    try:
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_new_method_is_one_class_and_one_yaml_file(tmp_path):
    @register("TOY-L2")
    class ToyL2(Distiller):
        """Squared distance of the logits."""

        defaults = {"WEIGHT": 0.1}

        def build(self, cfg):
            self.weight = cfg.WEIGHT

        def sample_losses(self, student, teacher, **batch):
            return {"l2": self.weight * (student.logits - teacher.logits).pow(2).mean(dim=1)}

    yaml = tmp_path / "toy.yaml"
    yaml.write_text("DISTILLER: {TYPE: EA-TOY-L2}\nTOY-L2: {WEIGHT: 0.5}\n")
    try:
        from mdistiller.config import load_cfg
        from tests.engine.support import SMALL

        cfg = load_cfg(yaml, [*SMALL, "LOG.PREFIX", str(tmp_path / "out")])
        assert train(cfg)["status"] == "done"
        with pytest.raises(UserError, match="toy.yaml: unknown key TOY-L2.WIGHT; nearest: TOY-L2.WEIGHT"):
            yaml.write_text("TOY-L2: {WIGHT: 0.5}\n")
            load_cfg(yaml)
    finally:
        del DISTILLERS["TOY-L2"], DISTILLERS["EA-TOY-L2"]


def test_the_learning_rate_falls_in_the_epoch_after_the_milestone():
    solver = small_cfg(".").SOLVER
    solver.LR, solver.LR_DECAY_STAGES, solver.LR_DECAY_RATE = 1.0, [150, 180], 0.1
    assert [learning_rate(solver, epoch) for epoch in (1, 150, 151, 180, 181)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_dot_without_delta_is_sgd_and_trains_the_same_weights(tmp_path):
    opts = ("SOLVER.WEIGHT_DECAY", 5e-4, "SOLVER.EPOCHS", 1, "SOLVER.LR", 0.01)  # more steps: more rounding
    plain = run(tmp_path / "sgd", "EA-KD", *opts)
    dot = run(tmp_path / "dot", "EA-KD", *opts, "SOLVER.TRAINER", "dot", "SOLVER.DOT.DELTA", 0.0)
    one, other = weights(plain), weights(dot)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=key)


def test_cosine_with_warm_up_rises_linearly_and_ends_at_the_least_rate():
    solver = small_cfg(".").SOLVER
    solver.SCHEDULE, solver.LR, solver.WARMUP_EPOCHS, solver.EPOCHS, solver.MIN_LR = "cosine", 1.0, 2.0, 10, 0.1
    rates = [learning_rate(solver, *point) for point in ((1, 0.0), (2, 0.0), (3, 0.0), (7, 0.0), (10, 1.0))]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])


def test_the_average_of_the_student_is_evaluated_saved_and_resumed(tmp_path):
    opts = ("SOLVER.EMA", 0.5, "SOLVER.TYPE", "AdamW", "SOLVER.LR", 1e-3, "SOLVER.SCHEDULE", "cosine",
            "SOLVER.CLIP_NORM", 1.0, "SOLVER.LABEL_SMOOTHING", 0.1, "SOLVER.EPOCHS", 2)
    folder = run(tmp_path, "NONE", *opts)
    state = torch.load(folder / "latest.pth", weights_only=True)["average"]
    average = weights(folder, "student_ema.pth")
    assert all(torch.equal(state[f"module.{key}"], value) for key, value in average.items())
    assert not torch.equal(average["fc.weight"], weights(folder, "student_latest.pth")["fc.weight"])
    assert {"test_top1_ema", "test_top1"} <= metrics(folder)[-1].keys()


def test_two_accumulated_halves_train_like_one_batch(tmp_path):
    """With frozen batch statistics the gradient of a batch is the mean of its halves'."""
    from mdistiller.distillers.kd import KD

    class Frozen(KD):
        def train(self, mode=True):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            return self

    register("TOY-FROZEN")(Frozen)
    Frozen.config_key = "KD"
    try:
        opts = ("DATASET.TRAIN_FRACTION", 32 / 300, "SOLVER.EPOCHS", 1)
        whole = run(tmp_path / "a", "TOY-FROZEN", *opts, "SOLVER.BATCH_SIZE", 32)
        halves = run(tmp_path / "b", "TOY-FROZEN", *opts, "SOLVER.BATCH_SIZE", 16, "SOLVER.ACCUMULATE", 2)
    finally:
        del DISTILLERS["TOY-FROZEN"], DISTILLERS["EA-TOY-FROZEN"]
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_the_record_of_a_finished_run_is_not_changed(unbroken):
    before = (unbroken / "run.json").read_text()
    assert run(unbroken.parents[1], resume=True) == unbroken and (unbroken / "run.json").read_text() == before


def test_of_a_finished_run_no_change_of_software_is_told(unbroken, tmp_path):
    folder = Path(shutil.copytree(unbroken, tmp_path / "runs" / unbroken.parent.name / unbroken.name))
    text = (folder / "run.json").read_text()  # of a run that was continued with another version, and said so then
    (folder / "run.json").write_text(text.replace('"sessions": [', '"sessions": [{"python": "3.10.0"},'))
    assert run(tmp_path / "runs", resume=True) == folder
    assert "the run was stopped with" not in (folder / "train.log").read_text()


def test_nesterov_without_momentum_is_refused(tmp_path):
    with pytest.raises(UserError, match="^command line: SOLVER.NESTEROV"):
        run(tmp_path, "EA-KD", "SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0)
