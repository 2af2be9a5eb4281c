"""The commands as a user types them: exit codes, one-line errors, quiet logs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tqdm import std

from mdistiller.config import load_cfg
from mdistiller.engine import checkpoints
from mdistiller.engine.cache import admin
from mdistiller.engine.log import start_logging
from mdistiller.engine.reopen import evaluate_checkpoint
from mdistiller.errors import UserError
from mdistiller.library import from_config
from tests.engine.support import REPOSITORY, assert_same_weights, command, run, train_command, typed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = command(*train_command(folder))
    assert done.returncode == 0, done.stderr
    return done, next(folder.glob("*/*"))


def test_training_prints_one_line_per_epoch_and_no_progress_bar_without_a_terminal(finished):
    done, folder = finished
    lines = [line for line in done.stdout.splitlines() if "epoch " in line]
    assert len(lines) == 3 and "\r" not in done.stdout
    assert str(REPOSITORY / "mdistiller") in done.stdout  # which copy of the package runs
    assert (folder / "train.log").read_text().count("epoch ") == 3


def test_eval_of_the_run_agrees_with_its_summary_and_with_its_student_file(finished):
    _, folder = finished
    summary = json.loads((folder / "summary.json").read_text())
    printed = command("tools/eval.py", "--run", folder)
    assert printed.returncode == 0, printed.stderr
    assert f"last: top-1 {summary['last_top1']:.2f}" in printed.stdout
    assert f"best: top-1 {summary['best_top1']:.2f}" in printed.stdout
    alone = command("tools/eval.py", "-m", "resnet8", "-c", folder / "student_best.pth", "-d", "digits")
    assert f"resnet8: top-1 {summary['best_top1']:.2f}" in alone.stdout and "mean entropy" in alone.stdout


def test_eval_says_that_weights_are_not_finite(finished, tmp_path, caplog):
    _, folder = finished
    content = checkpoints.load(folder / "student_best.pth")
    next(iter(content["model"].values())).fill_(float("nan"))
    checkpoints.save(content, tmp_path / "nan.pth")
    evaluate_checkpoint("resnet8", tmp_path / "nan.pth", "digits")
    assert f"{tmp_path / 'nan.pth'}: the weights are not finite" in caplog.text


DIGITS = ["DATASET.TYPE", "digits"]
DIGITS_KD = [*DIGITS, "DISTILLER.TYPE", "KD"]


@pytest.mark.parametrize(
    "words, fragments",
    [
        (["--cfg", "no/such.yaml"], ["no/such.yaml", "no such config file"]),
        (["KD.TEMPERATUR", "3"], ["unknown key KD.TEMPERATUR", "nearest: KD.TEMPERATURE"]),
        (["SOLVER.EPOCHS", "many"], ["SOLVER.EPOCHS", "expected int", "'many'"]),
        (["SOLVER.EPOCHS"], ["SOLVER.EPOCHS", "a value must follow"]),
        (["DISTILLER.TYPE", "EA-KDD"], ["DISTILLER.TYPE", "EA-KDD", "EA-KD"]),
        (["DATASET.TYPE", "digit"], ["command line: DATASET.TYPE: unknown data set 'digit'", "digits"]),
        ([*DIGITS, "DISTILLER.STUDENT", "resnet9"], ["DISTILLER.STUDENT", "resnet9", "resnet8"]),
        (["DATASET.ROOT", "/no/where"], ["/no/where", "DATASET.DOWNLOAD"]),
        (DIGITS_KD, ["DISTILLER.TEACHER_CHECKPOINT", "ResNet50"]),
        ([*DIGITS_KD, "DISTILLER.TEACHER_CHECKPOINT", "no.pth"], ["no such file", "no.pth"]),
        ([*DIGITS, "DEVICE", "gpu"], ["DEVICE", "'gpu'"]),
    ],
)
def test_user_errors_are_one_line_and_exit_2(words, fragments, tmp_path):
    config = [] if words[0] == "--cfg" else ["--cfg", os.devnull]
    result = command("tools/train.py", *config, "LOG.PREFIX", tmp_path, *words)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_of_other_classes_or_another_network_or_no_checkpoint_is_explained(finished, tmp_path):
    _, folder = finished
    wrong = [
        (("-m", "resnet14", "-c", folder / "student_best.pth", "-d", "digits"), "does not fit the network resnet14"),
        (("-m", "resnet8x4", "-c", folder / "student_best.pth", "-d", "digits"), "in the file"),
        (("-m", "resnet8", "-c", folder / "config.yaml", "-d", "digits"), "not a checkpoint"),
    ]
    for words, fragment in wrong:
        result = command("tools/eval.py", *words)
        assert result.returncode == 2 and fragment in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_a_truncated_checkpoint_is_refused_and_not_changed(finished, tmp_path):
    _, folder = finished
    copy = tmp_path / "cut.pth"
    copy.write_bytes((folder / "student_best.pth").read_bytes()[:1000])
    result = command("tools/eval.py", "-m", "resnet8", "-c", copy, "-d", "digits")
    assert result.returncode == 2 and "cut.pth" in result.stderr and copy.stat().st_size == 1000


def test_nothing_is_written_into_a_folder_that_is_not_a_run(finished, tmp_path):
    target = tmp_path / "distill" / "mine"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("precious")
    result = command(*train_command(tmp_path, "EXPERIMENT.NAME", "mine"))
    assert result.returncode == 2 and "not empty and not a run folder" in result.stderr
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_the_checkout_is_used_instead_of_an_installed_copy(tmp_path):
    decoy = tmp_path / "mdistiller"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit('the decoy was imported')\n")
    result = typed("tools/train.py", "--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and "--cfg" in result.stdout


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_asked_to_stop_saves_and_says_how_it_ended(number, code, tmp_path):
    words = train_command(tmp_path, "SOLVER.EPOCHS", 500)
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_checkpoint(tmp_path)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code and "continue with --resume" in error and error.count("\n") == 1
    folder = next(tmp_path.glob("*/*"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def wait_for_checkpoint(folder):
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/*/latest.pth")) and time.monotonic() < deadline:
        time.sleep(0.005)


def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path):
    """SIGKILL cannot be caught; it is sent as soon as the first epoch is on disk."""
    _, folder = finished
    words = train_command(tmp_path)
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_checkpoint(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = command(*train_command(tmp_path, resume=True))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(next(tmp_path.glob("*/*")), folder)


def test_sigterm_is_reported_when_there_is_nothing_to_save():
    code = "import os; from mdistiller.command import run_command; run_command(lambda: os.kill(os.getpid(), 15))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "error: terminated\n")


def test_an_impossible_path_is_one_line_and_exit_2(tmp_path):
    done = command(*train_command(tmp_path, "EXPERIMENT.NAME", "n" * 300))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File name too long" in done.stderr


def test_eval_measures_in_the_precision_of_the_run(tmp_path):
    folder = run(tmp_path, "EA-KD", "SOLVER.AMP", "bf16", "SOLVER.EPOCHS", 1, "DATASET.TRAIN_FRACTION", 0.2)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    printed = command("tools/eval.py", "--run", folder).stdout
    assert f"last: top-1 {last['test_top1']:.2f}" in printed and f"loss {last['test_loss']:.4f}" in printed


@pytest.mark.parametrize("use", [
    from_config, lambda path: admin.prefill(load_cfg(path)),
    lambda path: admin.verify_against_teacher(load_cfg(path), 1),
], ids=["from_config", "prefill", "verify"])
def test_an_error_names_the_file_that_says_the_wrong_value(use, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("DATASET: {TYPE: cub200}\nDISTILLER: {TYPE: KD}\nDEVICE: cpu\n")
    with pytest.raises(UserError, match=f"^{path}: DATASET.TYPE: unknown data set 'cub200'"):
        use(path)


def test_ctrl_c_at_the_first_line_of_a_log_ends_as_at_any_other(monkeypatch):
    """The first line made the lock of progress bars, and an end in between was an AttributeError with a traceback."""
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.delattr(std.tqdm, "_lock", raising=False)
    monkeypatch.setattr(std, "TqdmDefaultWriteLock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_logging().info("the first line")
