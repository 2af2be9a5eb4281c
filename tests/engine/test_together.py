"""Runs that train together in one process are, bit for bit, the runs that they are alone."""

import dataclasses
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS, Distiller, register
from mdistiller.distillers.ea import entropy
from mdistiller.engine.setup import train
from mdistiller.engine.together import Order, train_together
from mdistiller.engine.trainer import Trainer
from mdistiller.models import build_model
from tests import forked
from tests.engine.support import SMALL, command, few_test_images

OPTS = [*SMALL, "DATASET.TRAIN_FRACTION", 0.1, "SOLVER.BATCH_SIZE", 12, "SOLVER.EPOCHS", 2,
        "SOLVER.LR_DECAY_STAGES", [1]]
SIZES = (12, 12, 6)  # the batches of an epoch
STEPS = 2 * len(SIZES)
METHODS = ("KD", "EA-KD", "REVIEWKD", "MLD", "CRD", "FCFD", "EA-FCFD", "DRAWS")
TEACHER = []  # the file of its weights
TIMES = ("seconds", "images_per_second", "wall_seconds", "epoch_seconds")


class Draws(Distiller):
    """A method with random numbers of Python and NumPy, which no step seeds. Its runs have a seed, and so a random
    teacher, of their own, and the data of the others."""

    def sample_losses(self, student, teacher, **batch):
        return {"drawn": (random.random() + np.random.random()) * entropy(student.logits)}


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory):
    register("DRAWS")(Draws)
    torch.manual_seed(7)
    TEACHER.append(tmp_path_factory.mktemp("teacher") / "resnet8.pth")
    torch.save({"model": build_model("resnet8", 10).state_dict()}, TEACHER[0])
    yield
    TEACHER.clear()
    for name in ("DRAWS", "EA-DRAWS"):
        del DISTILLERS[name]


def options(folder, method, *more):
    own = ("EXPERIMENT.SEED", 1, "DATASET.SEED", 0) if method == "DRAWS" else ("DISTILLER.TEACHER_CHECKPOINT", *TEACHER)
    return [str(word) for word in (*OPTS, "DISTILLER.TYPE", method, "LOG.PREFIX", folder, *own, *more)]


def order(folder, method, *more):
    (folder / "records").mkdir(exist_ok=True, parents=True)
    return Order(os.devnull, options(folder, method, *more), ["train.py", method], str(folder / "records" / method))


def together(folder, *methods, more=()):
    with few_test_images():
        return train_together([order(folder, method, *more) for method in methods])


def alone(folder, method, *more, resume=False):
    with few_test_images():
        train(load_cfg(None, options(folder, method, *more)), resume=resume)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Each method trained alone; the folder of all runs."""
    folder = tmp_path_factory.mktemp("alone")
    for method in METHODS:
        alone(folder, method)
    return folder


def run_of(folder, method):
    (path,) = folder.glob(f"distill/digits_{method.lower()}_resnet8*")
    return path


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(child) for key, child in value.items() if key not in TIMES}
    return value


def assert_equal(one, other, place=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}/{number}")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, place


def assert_same_run(folder, unbroken, method):
    """Weights, the method's modules, teacher, optimiser, measurements, the best student, and every line of metrics."""
    one, other = run_of(folder, method), run_of(unbroken, method)
    for name in ("latest.pth", "student_best.pth"):
        assert_equal(*(without_times(torch.load(path / name, weights_only=True)) for path in (one, other)), name)
    lines = ([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (one, other))
    assert_equal(*([without_times(line) for line in part] for part in lines), "metrics.jsonl")


class FirstConvolutions:
    """Counts the training batches that pass through the first convolution of a frozen network, which is a teacher."""

    def __enter__(self):
        self.number = 0
        self.handle = nn.modules.module.register_module_forward_hook(self._count)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def _count(self, module, inputs, output):
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and not module.weight.requires_grad:
            self.number += len(inputs[0]) in SIZES  # those of the evaluation are larger


def test_runs_together_equal_the_same_runs_alone_and_the_teacher_runs_once_a_batch(unbroken, tmp_path):
    with FirstConvolutions() as passes:
        assert together(tmp_path, *METHODS) == 0
    for method in METHODS:
        assert_same_run(tmp_path, unbroken, method)
    # of the methods in eval mode, of MLD's strong view, of FCFD, whose teacher is in train mode, of another teacher
    assert passes.number == 4 * STEPS
    ran = json.loads((run_of(tmp_path, "CRD") / "run.json").read_text())
    assert ran["command"] == "train.py CRD" and ran["teacher_checkpoint"] == str(TEACHER[0])
    assert "epoch 2/2" in (tmp_path / "records" / "CRD.log").read_text()
    log = (run_of(tmp_path, "CRD") / "train.log").read_text()
    assert "CRD: resnet8 -> resnet8" in log and "KD: resnet8" not in log and log.count("epoch 2/2") == 1


def test_stored_logits_are_computed_by_one_run_for_all(tmp_path):
    def stored(folder):
        return ("TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.KIND", "replay", "TEACHER_CACHE.DIR", folder / "cache")

    with FirstConvolutions() as passes:
        for method in ("KD", "MLD"):
            alone(tmp_path / "alone", method, *stored(tmp_path / "alone"))
    before = passes.number
    with FirstConvolutions() as passes:
        assert together(tmp_path, "KD", "MLD", more=stored(tmp_path)) == 0
    assert passes.number == before > 0  # the runs alone share a store, too
    for method in ("KD", "MLD"):
        assert_same_run(tmp_path, tmp_path / "alone", method)


def at_step(monkeypatch, place, action, method=None):
    """Call `action` after the step that leads to `place`, of one method or of all."""
    own = Trainer._step

    def step(self, batch):
        own(self, batch)
        if self.place == place and method in (None, self.cfg.DISTILLER.TYPE):
            action()

    monkeypatch.setattr(Trainer, "_step", step)
    return lambda: monkeypatch.setattr(Trainer, "_step", own)


def test_a_killed_group_is_continued_alone_and_with_runs_at_other_places(unbroken, tmp_path, monkeypatch):
    undo = at_step(monkeypatch, (2, 1), lambda: os.kill(os.getpid(), signal.SIGKILL), "FCFD")
    killed = forked.start(lambda: together(tmp_path, "KD", "EA-FCFD", "FCFD"), tmp_path / "out", tmp_path / "err")
    assert forked.end(killed) == -signal.SIGKILL
    undo()
    alone(tmp_path, "KD", resume=True)
    assert together(tmp_path, "KD", "EA-FCFD", "REVIEWKD", "FCFD") == 0  # at the end, in epoch 2, at the start
    for method in ("KD", "FCFD", "EA-FCFD", "REVIEWKD"):
        assert_same_run(tmp_path, unbroken, method)


def test_a_stopped_group_saves_every_run_at_its_step_and_continues(unbroken, tmp_path, monkeypatch):
    undo = at_step(monkeypatch, (1, 2), lambda: os.kill(os.getpid(), signal.SIGTERM), "EA-KD")
    assert together(tmp_path, "KD", "EA-KD") == 143
    undo()
    for method in ("KD", "EA-KD"):
        state = torch.load(run_of(tmp_path, method) / "latest.pth", weights_only=True)
        assert (state["epoch"], state["step"]) == (1, 2), method
        assert "interrupted by SIGTERM: saved" in (tmp_path / "records" / f"{method}.log").read_text()
    assert together(tmp_path, "KD", "EA-KD") == 0
    for method in ("KD", "EA-KD"):
        assert_same_run(tmp_path, unbroken, method)


def test_a_run_that_fails_ends_alone_with_its_own_code(unbroken, tmp_path, monkeypatch):
    own = Trainer._step

    def step(self, batch):
        if self.place == (1, 1) and self.cfg.DISTILLER.TYPE == "EA-KD":
            batch["image"] = batch["image"] * float("nan")
        own(self, batch)

    monkeypatch.setattr(Trainer, "_step", step)
    orders = [order(tmp_path, "KD"), order(tmp_path, "EA-KD"), order(tmp_path, "REVIEWKD")]
    orders.append(order(tmp_path, "FITNET", "DISTILLER.TEACHER_CHECKPOINT", tmp_path / "none.pth"))
    with few_test_images():
        assert train_together(orders) == 3
    codes = {name: int((tmp_path / "records" / f"{name}.code").read_text())
             for name in ("KD", "EA-KD", "REVIEWKD", "FITNET")}
    assert codes == {"KD": 0, "EA-KD": 3, "REVIEWKD": 0, "FITNET": 2}
    logs = [(tmp_path / "records" / f"{name}.log").read_text() for name in ("EA-KD", "FITNET")]
    failed, refused = (text.splitlines()[-1] for text in logs)
    assert failed.startswith("error: EA-KD: loss ce, kd is not finite at epoch 1, step 2")
    assert refused.startswith("error: ") and "none.pth" in refused
    assert json.loads((run_of(tmp_path, "EA-KD") / "summary.json").read_text())["status"] == "failed"
    for method in ("KD", "REVIEWKD"):
        assert_same_run(tmp_path, unbroken, method)


def test_a_command_with_bytes_that_are_no_text_is_logged_as_it_is_alone(tmp_path):
    """In a locale without UTF-8 every other letter of a path is such bytes."""
    one = order(tmp_path, "NONE", "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [])
    one = dataclasses.replace(one, command=["caf\udce9.yaml"])
    with few_test_images():
        assert train_together([one]) == 0
    log = (tmp_path / "records" / "NONE.log").read_text()
    assert "command: 'caf\\udce9.yaml'\n" in log and "Logging error" not in log


def test_the_sweep_trains_groups_as_typed(tmp_path):
    files = []
    for name, text in (("kd", "TYPE: KD"), ("at", "TYPE: EA-AT"), ("short", "TYPE: KD")):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(
            f"DISTILLER: {{{text}, TEACHER: resnet8, STUDENT: resnet8, TEACHER_CHECKPOINT: random}}\n"
            f"DATASET: {{TYPE: digits, TRAIN_FRACTION: 0.1, SEED: 0, TEST: {{BATCH_SIZE: 512}}}}\n"
            f"SOLVER: {{EPOCHS: {1 if name == 'short' else 2}, BATCH_SIZE: 12, LR_DECAY_STAGES: []}}\nDEVICE: cpu\n"
        )
    words = ["tools/sweep.py", "--cfg", *files, "--seeds", 2, "--together", 3, f"LOG.PREFIX={tmp_path}/out"]
    plan = command(*words, "--dry-run")
    groups = [line for line in plan.stdout.splitlines() if line.startswith("# ")]
    assert plan.returncode == 0 and groups == ["# 3 runs together:", "# 2 runs together:"]
    assert plan.stdout.count("python tools/train.py --cfg ") == 6 and not (tmp_path / "out").exists()
    done = command(*words, "--fork", "--jobs", 1)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("6 of 6 done\n")
    assert command(*words, "--fork").stdout.endswith("6 done\nnothing left to do\n")
    (path,) = (tmp_path / "out").glob("sweep/*at_s1")
    ran = json.loads((path / "run.json").read_text())
    assert ran["command"].startswith("tools/train.py --cfg ") and "EXPERIMENT.SEED=1" in ran["command"]
    assert not list((tmp_path / "out").glob(".sweep/sweep/*.code"))


@pytest.mark.parametrize("words", [("--together", "1"), ("--together", "2", "3"), ("--together", "two"),
                                   ("--together", "--launcher", "slurm")])
def test_what_cannot_train_together_is_one_line(words):
    done = command("tools/sweep.py", "--cfg", "configs/digits/kd/res20_res8.yaml", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: --together: ") and done.stderr.count("\n") == 1
