"""What resuming refuses, and what a stop does not change: finished runs, other data, two processes, second signals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import UserError
from tests.data.support import write_folders
from tests.engine.support import REPOSITORY, run, train_command


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_finished_run_without_its_checkpoints_is_not_trained_anew(tmp_path):
    folder = run(tmp_path, "KD")
    for name in ("latest.pth", "previous.pth"):
        (folder / name).unlink()
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
    holds = "import sys; from pathlib import Path; from mdistiller.engine.run_folder import RunFolder\n" \
            "folder = RunFolder(Path(sys.argv[1])); folder.take(True); print('taken', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", holds, str(folder)], cwd=REPOSITORY, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(UserError, match="another process trains in this folder"):
            RunFolder(folder).take(True)
    finally:
        other.communicate()
    taken = RunFolder(folder)
    taken.take(True)  # let go of by the end of the process
    taken.release()
    with pytest.raises(UserError, match="already contains a run; add --resume"):
        RunFolder(folder).take(False)


def test_a_second_signal_ends_a_run_that_waits(tmp_path):
    hangs = tmp_path / "hangs.py"
    hangs.write_text(
        "import sys, time\n"
        "sys.path.insert(0, 'tools')\n"
        "import train\n"
        "from mdistiller.data.memory import InMemoryData\n"
        "def wait(self, *args, **options):\n"
        "    print('waiting', flush=True)\n"
        "    while True: time.sleep(1)\n"
        "InMemoryData.train_batches = wait\n"
        "train.cli()\n"
    )
    process = subprocess.Popen([sys.executable, str(hangs), *train_command(tmp_path / "out")[1:]], cwd=REPOSITORY,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    try:
        while process.stdout.readline() != "waiting\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # the first one is looked at between two steps
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143 and errors.splitlines()[-1].startswith("error: interrupted by SIGTERM again")


def test_tensorboard_shows_every_epoch_once_after_a_resume(tmp_path):
    for resume in (False, True):
        folder = run(tmp_path, "KD", "LOG.TENSORBOARD_FREQ", 1, resume=resume)
    shown = EventAccumulator(str(folder / "tb"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("test_top1")] == [3, 6, 9]
    assert [event.step for event in shown.Scalars("step/kd")] == list(range(1, 10))


def test_the_time_of_a_stopped_epoch_counts(tmp_path, monkeypatch):
    from mdistiller.command import Interrupted
    from mdistiller.engine.trainer import Trainer

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


