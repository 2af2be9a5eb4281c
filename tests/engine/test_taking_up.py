"""Resuming and stopping: finished runs, other data, two processes in one folder, a second signal."""

import importlib
import json
import os
import signal
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mdistiller.data.memory import InMemoryData
from mdistiller.engine.run_folder import RunFolder
from mdistiller.engine.run_state import RunState
from mdistiller.engine.trainer import REPEAT_SECONDS, Trainer
from mdistiller.errors import RunError, UserError
from tests import forked
from tests.data.support import write_folders
from tests.engine.support import run, stopped_after, train_command


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_finished_run_without_checkpoints_is_not_trained_again(tmp_path):
    folder = run(tmp_path, "KD")
    for name in ("latest.pth", "previous.pth"):
        (folder / name).unlink()
        (folder / name).mkdir()  # a folder of that name is no checkpoint
    before = contents(folder)
    with pytest.raises(UserError, match="the run has finished, and its checkpoints .* are missing"):
        run(tmp_path, "KD", resume=True)
    assert contents(folder) == before
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    before = contents(folder)
    with pytest.raises(UserError, match="the run has 3 epochs, and its checkpoints"):
        run(tmp_path, "KD", resume=True)
    assert contents(folder) == before


def test_other_training_data_are_refused_before_anything_is_written(tmp_path):
    root = tmp_path / "images"
    write_folders(root, per_class=(8, 2), classes=("a", "b"))
    opts = ("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(root), "DATASET.IMAGE_SIZE", 32, "SOLVER.BATCH_SIZE", 4,
            "DATASET.TRAIN_FRACTION", 1.0)
    folder = run(tmp_path / "out", "NONE", *opts)
    before = contents(folder)
    write_folders(root, per_class=(10, 2), classes=("a", "b"))
    with pytest.raises(UserError, match="run.json: the run to resume has other training data: data_sha256 "):
        run(tmp_path / "out", "NONE", *opts, resume=True)
    assert contents(folder) == before


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = run(tmp_path, "KD", "SOLVER.EPOCHS", 1)
    out = tmp_path / "out"

    def hold():
        held = RunFolder(folder)
        held.take(True)
        print("taken", flush=True)
        time.sleep(60)

    other = forked.start(hold, out, tmp_path / "err")
    try:
        while not (out.exists() and out.read_text()):
            time.sleep(0.005)
        with pytest.raises(UserError, match="another process trains in this folder"):
            RunFolder(folder).take(True)
    finally:
        os.kill(other, signal.SIGKILL)
        forked.end(other)
    taken = RunFolder(folder)
    taken.take(True)  # let go of by the end of the process
    taken.release()
    with pytest.raises(UserError, match="already contains a run; add --resume"):
        RunFolder(folder).take(False)


@pytest.mark.parametrize("again", [False, True])
def test_a_run_whose_folder_was_moved_ends_and_writes_nothing_more(again, tmp_path, monkeypatch):
    """The same command may have started a new run in the old place meanwhile."""
    step = Trainer._step

    def move(self, batch):
        step(self, batch)
        if (self.epoch, self.step) == (2, 1):
            monkeypatch.setattr(Trainer, "_step", step)
            self.folder.path.rename(tmp_path / "moved")
            if again:
                run(tmp_path / "runs", "NONE", "EXPERIMENT.NAME", "one", "SOLVER.EPOCHS", 1)

    monkeypatch.setattr(Trainer, "_step", move)
    with pytest.raises(RunError, match="one: this run's folder was removed, moved or replaced"):
        run(tmp_path / "runs", "NONE", "EXPERIMENT.NAME", "one")
    folder, lines = tmp_path / "runs/distill/one", (tmp_path / "moved/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]
    assert folder.exists() == again
    if again:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_a_second_signal_ends_a_waiting_run(tmp_path):
    def wait(*args, **options):
        print("waiting", flush=True)
        while True:
            time.sleep(1)

    def train():
        InMemoryData.train_batches = wait
        sys.argv = train_command(tmp_path / "runs")
        importlib.import_module("tools.train").cli()

    out, err = tmp_path / "out", tmp_path / "err"
    process = forked.start(train, out, err)
    while "waiting\n" not in (out.read_text() if out.exists() else ""):
        assert os.waitpid(process, os.WNOHANG) == (0, 0), err.read_text()
        time.sleep(0.01)
    for _ in range(2):  # at once, as from a terminal and a launcher: one request, looked at between two steps
        os.kill(process, signal.SIGINT)
        time.sleep(0.1)
    time.sleep(REPEAT_SECONDS)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.kill(process, signal.SIGTERM)
    assert forked.end(process) == 143
    assert err.read_text().splitlines()[-1].startswith("error: interrupted by SIGTERM again")


def test_tensorboard_shows_every_epoch_once_after_a_resume(tmp_path):
    for resume in (False, True):
        folder = run(tmp_path, "KD", "LOG.TENSORBOARD_FREQ", 1, resume=resume)
    shown = EventAccumulator(str(folder / "tb"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("test_top1")] == [3, 6, 9]
    assert [event.step for event in shown.Scalars("step/kd")] == list(range(1, 10))


def test_tensorboard_shows_a_step_of_each_period_where_the_device_is_read_rarely(tmp_path, monkeypatch):
    steps = Trainer.steps

    def rarely(self):
        self.poll_steps = 2
        return (yield from steps(self))

    monkeypatch.setattr(Trainer, "steps", rarely)
    shown = EventAccumulator(str(run(tmp_path, "KD", "LOG.TENSORBOARD_FREQ", 2) / "tb"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("step/kd")] == [2, 5, 6, 8]  # read at 2, 3, 5, 6, 8 and 9


def test_a_run_that_is_continued_is_said_to_be_running(tmp_path, monkeypatch):
    with stopped_after(2, 1):
        run(tmp_path, "KD")
    path, told, step = next(tmp_path.glob("*/*/summary.json")), [], Trainer._step
    assert json.loads(path.read_text())["status"] == "interrupted"

    def look(self, batch):
        told.append(json.loads(path.read_text())["status"])
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step", look)
    run(tmp_path, "KD", resume=True)
    assert told == 5 * ["running"]


def test_accumulated_steps_are_saved_and_averaged_between_updates(tmp_path, monkeypatch):
    saved, save = [], RunState.save

    def note(self, name):
        saved.append(self.step)
        save(self, name)

    monkeypatch.setattr(RunState, "save", note)
    folder = run(tmp_path, "KD", "SOLVER.BATCH_SIZE", 16, "SOLVER.ACCUMULATE", 4, "SOLVER.EPOCHS", 1,
                 "SOLVER.LR_DECAY_STAGES", [], "SOLVER.EMA", 0.5, "LOG.SAVE_CHECKPOINT_STEPS", 3)
    assert [step for step in saved if step] == [4, 8]  # of 10 steps; an update is after 4, 8 and 10
    assert torch.load(folder / "latest.pth", weights_only=True)["average"]["n_averaged"] == 3


def test_the_time_of_an_interrupted_epoch_is_counted(tmp_path, monkeypatch):
    from mdistiller.command import Interrupted

    original = Trainer._step

    def slow(self, batch):
        time.sleep(0.2)
        original(self, batch)
        if self.step == 2 and self.epoch == 1:
            self.stop_signal = signal.SIGTERM

    monkeypatch.setattr(Trainer, "_step", slow)
    with pytest.raises(Interrupted):
        run(tmp_path, "KD", "SOLVER.EPOCHS", 1)
    monkeypatch.setattr(Trainer, "_step", original)
    folder = run(tmp_path, "KD", "SOLVER.EPOCHS", 1, resume=True)
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert line["seconds"] > 0.4 and json.loads((folder / "summary.json").read_text())["wall_seconds"] > 0.4


