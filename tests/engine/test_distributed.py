"""Two processes (gloo) compared with one, and a rank that is killed."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mdistiller import distributed
from tests.engine import frozen_training, stopped_training
from tests.engine.support import REPOSITORY, few_test_images, train_command, typed, weights
from tests.forked import run_ranks

METHODS = ("KD", "EA-DKD", "CTKD", "REVIEWKD", "CRD", "FCFD")
# CRD's scores are exp(similarity / 0.07): on some processors rounding grows to 2e-4 within the steps.
TOLERANCES = {"CRD": 1e-3}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    for name, number in (("one", 1), ("two", 2)):
        for done in run_ranks(lambda name=name: frozen_training.main(folder / name, *METHODS), number):
            assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_trains_with_the_same_global_batch(trained, method):
    one, two = (next((trained / number / method).glob("*/*")) for number in ("one", "two"))
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    tolerance = TOLERANCES.get(method, 1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=tolerance, msg=f"{method}: {key}")
    records = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*records, strict=True):
        same = a.keys() - {"seconds", "images_per_second", "weight_std"}  # the spread is within each process's part
        expected = pytest.approx({key: b[key] for key in same}, rel=tolerance, abs=tolerance)
        assert {key: a[key] for key in same} == expected


def forked(words):
    """tools/train.py in two forked processes, as torchrun starts them."""

    def action():
        sys.argv = words
        importlib.import_module("tools.train").cli()

    with few_test_images():
        return run_ranks(action, 2)


@pytest.mark.parametrize("start", [forked, pytest.param(lambda words: [typed(*TORCHRUN, *words)], id="torchrun",
                                                        marks=pytest.mark.slow)])
def test_when_a_rank_dies_the_others_end_and_the_run_resumes(tmp_path, start):
    words = [sys.executable, *TORCHRUN, *train_command(tmp_path, "SOLVER.EPOCHS", 5)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/*/latest.pth")) and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        assert len(ranks) == 2
        os.kill(int(ranks[1]), signal.SIGKILL)
        assert launcher.wait(timeout=120) != 0
        time.sleep(0.5)
        alive = subprocess.run(["pgrep", "-g", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        assert alive == []
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    before = torch.load(next(tmp_path.glob("*/*/latest.pth")), weights_only=True)["epoch"]
    ended = start(train_command(tmp_path, "SOLVER.EPOCHS", 5, resume=True))
    assert all(done.returncode == 0 for done in ended), ended[-1].stderr[-2000:]
    log = "".join(done.stdout for done in ended)
    assert "resuming at epoch" in log
    said = [line.partition(" ")[2] for line in log.splitlines()]
    assert "the teacher's accuracy" in log and len(set(said)) == len(said), "only the first rank logs"
    assert torch.load(next(tmp_path.glob("*/*/latest.pth")), weights_only=True)["epoch"] == 6 >= before


def test_two_processes_stopped_within_an_epoch_end_with_the_metrics_of_an_unbroken_run(tmp_path):
    for folder, how in (("whole", "whole"), ("stopped", "stop"), ("stopped", "resume")):
        for done in run_ranks(lambda folder=folder, how=how: stopped_training.main(tmp_path / folder, how), 2):
            assert done.returncode == 0, done.stderr[-2000:]
    whole, stopped = (next((tmp_path / name).glob("*/*")) for name in ("whole", "stopped"))
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                for run in (whole, stopped))
    times = {"seconds", "images_per_second"}
    assert [{key: line[key] for key in line.keys() - times} for line in one] == [
        {key: line[key] for key in line.keys() - times} for line in two
    ]
    assert "test_loss_ema" in one[0]
    expected, found = weights(whole), weights(stopped)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(("device", "cuda", "backend"), [
    ("cpu", True, "gloo"), ("auto", True, "nccl"), ("cuda", True, "nccl"), ("auto", False, "gloo"),
])
def test_processes_communicate_where_the_run_computes(monkeypatch, device, cuda, backend):
    joined = []
    monkeypatch.setattr(distributed.dist, "init_process_group", joined.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert distributed.start(device) == 1 and joined == [backend]
