"""A disk that is full or fails while a run saves: saved files are complete, and the run can be resumed."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from mdistiller.engine import checkpoints
from mdistiller.engine.log import Scalars, quiet_writers
from mdistiller.engine.trainer import Trainer
from tests.engine.support import assert_same_weights, few_test_images, run, train_command
from tests.forked import run_tool


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"))


def train(folder, before=lambda: None, resume=False):
    """The small run in a forked process, in which `before` is called first: (exit code, stdout, stderr)."""
    with tempfile.TemporaryDirectory() as elsewhere:
        work = Path(elsewhere) / "work"
        work.mkdir()
        with few_test_images():
            done = run_tool("train", train_command(folder, resume=resume)[1:], work, before)
        return done.returncode, done.stdout, done.stderr


def failed_and_continues(folder, code, err, unbroken):
    """The run ended with one line, its saved files are complete, and resuming gives an uninterrupted run's bits."""
    assert code == 3 and err.startswith("error: ") and err.count("\n") == 1, (code, err)
    (path,) = folder.glob("*/*")
    assert checkpoints.load(path / "latest.pth")["epoch"] == 2
    for name in ("best.pth", "student_latest.pth", "student_best.pth"):
        checkpoints.load(path / name)
    assert {file.name for file in path.glob(".*")} <= {".lock"}, "a half-written file is left"
    code, _, err = train(folder, resume=True)
    assert code == 0, err
    assert_same_weights(path, unbroken)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 3


def write_fails(name, number, monkeypatch):
    """Let the second write of a file fail half way."""
    original, times = tempfile.NamedTemporaryFile, []

    def full(*args, **options):
        file = original(*args, **options)
        times.append(options["prefix"] == f".{name}.")
        if times[-1] and sum(times) == 2:
            write = file.write

            def half(content):
                write(content[: len(content) // 2])
                raise OSError(number, os.strerror(number))

            file.write = half
        return file

    return lambda: monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)


@pytest.mark.parametrize("name, number", [("latest.pth", errno.ENOSPC), ("student_latest.pth", errno.EROFS)])
def test_a_disk_error_while_a_checkpoint_is_written_loses_nothing(name, number, tmp_path, monkeypatch, unbroken):
    code, _, err = train(tmp_path / "run", write_fails(name, number, monkeypatch))
    assert f"{name}: cannot be written" in err
    failed_and_continues(tmp_path / "run", code, err, unbroken)


def test_a_stop_while_a_slow_disk_writes_waits_for_the_file(tmp_path, monkeypatch, unbroken):
    sync, calls = os.fsync, []

    def slow(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:  # one of the files of the first epoch
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            time.sleep(0.5)
        sync(descriptor)

    def stop_when_it_rings():
        monkeypatch.setattr(os, "fsync", slow)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    code, _, err = train(tmp_path / "run", stop_when_it_rings)
    assert code == 143 and "saved; continue with --resume" in err
    (path,) = (tmp_path / "run").glob("*/*")
    assert checkpoints.load(path / "latest.pth")["epoch"] == 2 and {file.name for file in path.glob(".*")} <= {".lock"}
    assert train(tmp_path / "run", resume=True)[0] == 0
    assert_same_weights(path, unbroken)


def from_the_second_epoch_on(action, monkeypatch):
    epoch = Trainer._epoch

    def changed(self):
        if self.epoch == 2:
            action()
        return epoch(self)

    return lambda: monkeypatch.setattr(Trainer, "_epoch", changed)


def test_an_epoch_that_cannot_be_recorded_fails_the_run(tmp_path, monkeypatch, unbroken):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))  # more than the line of an error

    code, _, err = train(tmp_path / "run", from_the_second_epoch_on(limit, monkeypatch))
    assert "cannot be written: File too large" in err
    failed_and_continues(tmp_path / "run", code, err, unbroken)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_file_system_loses_nothing_saved(small_disk, monkeypatch, unbroken):
    """Filled to the last byte after the first epoch: metrics, log and TensorBoard cannot be written either."""
    filler = small_disk / "filler"

    def fill():
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    code, _, err = train(small_disk / "run", from_the_second_epoch_on(fill, monkeypatch))
    filler.unlink()
    failed_and_continues(small_disk / "run", code, err, unbroken)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_command_whose_output_cannot_be_written_fails(unbroken, tmp_path):
    work = tmp_path / "work"
    work.mkdir()

    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    done = run_tool("compare", [unbroken.parent], work, full)
    assert (done.returncode, done.stderr) == (3, "error: the output: cannot be written: No space left on device\n")
    code, _, err = train(tmp_path / "run", full)
    assert code == 3 and err.count("\n") == 1 and err.startswith("error: the output"), err  # the run itself is done
    assert_same_weights(next((tmp_path / "run").glob("*/*")), unbroken)


def test_scalars_that_cannot_be_written_are_one_warning_without_a_traceback(tmp_path, monkeypatch, capsys, caplog):
    """TensorBoard writes in a thread of its own: an error there shows in a later call, and is printed by default."""

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # as outside pytest
    quiet_writers.cache_clear()
    scalars, step = Scalars(tmp_path / "tb"), 0
    while scalars.writer and step < 1000:
        scalars.add({"step/ce": 1.0}, step := step + 1)
        time.sleep(0.001)
    scalars.add({"step/ce": 1.0}, step)
    scalars.close()
    quiet_writers.cache_clear()  # the hook is undone with the patch
    said = [record.getMessage() for record in caplog.records]
    assert said == ["no more TensorBoard scalars: [Errno 28] No space left on device"]
    assert capsys.readouterr().err == ""
