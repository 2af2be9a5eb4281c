"""Runs of detectors: losses, resuming, two processes, weights of proposals, saved files."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from mdistiller.distillers import DISTILLERS
from mdistiller.distillers.ea import ea_weight
from mdistiller.distillers.kd import kd_loss
from mdistiller.engine.export import export_run
from mdistiller.engine.meters import Meters
from mdistiller.engine.optim import build_updater
from mdistiller.engine.pictures import draw_run
from mdistiller.engine.setup import build_run, train
from mdistiller.engine.trainer import Trainer, run_to_end
from mdistiller.errors import UserError
from mdistiller.report.page import report
from tests.detection.support import config, images, write_coco
from tests.forked import end, run_tool, start

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = ["KD", "EA-KD", "DKD", "EA-DKD", "REVIEWKD", "EA-REVIEWKD", "FCFD", "EA-FCFD", "NONE", "TTM", "EA-CTKD"]


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "coco")


def one_step(cfg, **changes):
    run = build_run(cfg, torch.device("cpu"))
    for name, value in changes.items():
        setattr(run.distiller, name, value)
    torch.manual_seed(0)
    batch = next(run.data.train_batches(1))
    batch.pop("share", None)
    return run, run.distiller(epoch=1, **batch)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_method_has_the_detectors_losses_and_its_own(root, method):
    run, (logits, losses) = one_step(config(root, "DISTILLER.TYPE", method))
    assert {"cls", "box", "rpn_cls", "rpn_box"} <= set(losses) and len(logits) == 32
    assert logits.shape[1] == 4 and (method == "NONE") == (len(losses) == 4)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in run.distiller.learnable_parameters())


def test_dot_splits_the_detectors_losses_from_what_is_distilled(root):
    cfg = config(root, "DISTILLER.TYPE", "KD", "SOLVER.TRAINER", "dot", "SOLVER.WEIGHT_DECAY", 0.0)
    run, (_, losses) = one_step(cfg)
    updater = build_updater(cfg, run.distiller, torch.device("cpu"))
    parameters, own = run.distiller.learnable_parameters(), sum(losses[name] for name in losses if name != "kd")
    expected = {"task": torch.autograd.grad(own, parameters, retain_graph=True), "soft": torch.autograd.grad(
        losses["kd"], parameters, retain_graph=True, allow_unused=True)}
    updater.step(losses)
    for name, gradients in expected.items():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            velocity = updater.optimizer.state[parameter].get(name)
            assert (velocity is None) == (gradient is None) and (gradient is None or torch.equal(velocity, gradient))


@pytest.mark.parametrize("method", ["EA-KD", "EA-DKD", "EA-REVIEWKD", "EA-FCFD"])
def test_a_weight_of_two_doubles_what_is_distilled_and_leaves_the_detectors_losses(root, method):
    cfg = config(root, "DISTILLER.TYPE", method, "KD.LOSS.REGRESSION_WEIGHT", 0.5)
    _, (_, once) = one_step(cfg, sample_weight=lambda s, t: torch.ones(len(t)))
    _, (_, twice) = one_step(cfg, sample_weight=lambda s, t: torch.full((len(t),), 2.0))
    for name, loss in once.items():
        factor = 1 if name in ("cls", "box", "rpn_cls", "rpn_box") else 2
        torch.testing.assert_close(twice[name], factor * loss)


@pytest.mark.parametrize("method", ["EA-KD", "EA-DKD"])
def test_the_log_gets_what_each_proposal_contributes_to_what_is_distilled(root, method):
    run, (_, losses) = one_step(config(root, "DISTILLER.TYPE", method))
    distilled = sum(loss for name, loss in losses.items() if name not in run.distiller.task.supervised_terms)
    assert run.distiller.monitor["loss"].shape == (32,)
    torch.testing.assert_close(run.distiller.monitor["loss"].mean(), distilled)


def test_only_the_foreground_is_distilled_on_request(root):
    """The loss is then the mean over the foreground of what all proposals contribute without the switch."""
    seen = {}

    def record(student, teacher, target, **batch):
        seen.update(logits=(student.logits, teacher.logits), target=target)
        return {"kd": kd_loss(student.logits, teacher.logits, 1.0)}

    opts = ("DISTILLER.TYPE", "EA-KD", "KD.LOSS.KD_WEIGHT", 1.0, "KD.TEMPERATURE", 1.0)
    _, (logits, losses) = one_step(config(root, *opts, "DETECTION.FOREGROUND_ONLY", True))
    _, (_, all_losses) = one_step(config(root, *opts), sample_losses=record)
    each = ea_weight(*seen["logits"], 3.0) * kd_loss(*seen["logits"], 1.0)
    foreground = seen["target"] > 0
    assert 0 < len(logits) == foreground.sum() < len(each) == 32
    torch.testing.assert_close(all_losses["kd"], each.mean())
    torch.testing.assert_close(losses["kd"], each[foreground].mean())
    assert losses["cls"] == all_losses["cls"]


def test_fcfd_reads_bridged_pyramids_through_the_other_networks_head(root):
    """With bridges that change nothing every loss can be computed from both networks alone."""
    cfg = config(root, "DISTILLER.TYPE", "FCFD", "FCFD.TEMPERATURE", 1.0, "FCFD.WARMUP", 0, "FCFD.FEAT_WEIGHT", 1.0)
    run = build_run(cfg, torch.device("cpu"))
    method, outputs, own = run.distiller, [], run.distiller.sample_losses
    assert (len(method.bridges), len(method.bridges_back)) == (5, 4)  # no head reads p6, the coarsest map
    method.bridges, method.bridges_back = (torch.nn.ModuleList([torch.nn.Identity()] * n) for n in (5, 4))

    def record(student, teacher, **batch):
        outputs.extend((student, teacher))
        return own(student, teacher, **batch)

    method.sample_losses = record
    batch = next(run.data.train_batches(1))
    batch.pop("share", None)
    _, losses = method(epoch=1, **batch)
    student, teacher = outputs
    maps = [output.features["feats"] for output in outputs]
    assert losses["appearance"].item() == pytest.approx(sum(
        (a - b).square().mean().item() for a, b in zip(*maps, strict=True)), rel=1e-5)
    sampled = student.extra
    mixed = [network.box_logits(feats, sampled.proposals, sampled.image_sizes)
             for network, feats in ((method.teacher, maps[0]), (method.student, maps[1]))]
    assert losses["mixed"].item() == pytest.approx(sum(
        kd_loss(logits, teacher.logits, 1.0).mean().item() for logits, _ in mixed), rel=1e-5)
    boxes = [student.regression, *(deltas[:, 4:] for _, deltas in mixed)]
    assert losses["regression"].item() == pytest.approx(sum(
        (one - teacher.regression).square().mean().item() for one in boxes), rel=1e-5)


def test_the_teacher_stays_as_it_is_and_is_in_no_state(root, tmp_path):
    cfg = config(root, "DISTILLER.TYPE", "EA-KD", "MODEL.NORM", "bn", "SOLVER.MAX_ITER", 5, "SOLVER.EVAL_PERIOD", 5)
    run = build_run(cfg, torch.device("cpu"))
    teacher = run.distiller.teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    run_to_end(Trainer(run, _folder(cfg, tmp_path)).steps())
    run.distiller.train()
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any("teacher" in key for key in run.distiller.state_dict())


def _folder(cfg, path):
    from mdistiller.engine.run_folder import RunFolder

    cfg.LOG.PREFIX = str(path)
    folder = RunFolder.open(cfg, False)
    folder.describe(cfg, device="cpu", processes=1)
    return folder


def weights(folder):
    return torch.load(folder / "student_latest.pth", weights_only=True)["model"]


def killed(step, cfg, folder, resume):
    """Train in a process that kills itself when its `step`-th training step begins."""
    own, begun = Trainer._step, []

    def count(self, batch):
        begun.append(0)
        if len(begun) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        own(self, batch)

    def action():
        Trainer._step = count
        train(cfg, resume=resume)

    return end(start(action, folder / "out", folder / "err"))


def test_a_run_killed_again_and_again_ends_with_the_weights_and_detections_of_an_unbroken_one(root, tmp_path):
    opts = ["DISTILLER.TYPE", "EA-FCFD", "EXPERIMENT.NAME", "run", "LOG.SAVE_CHECKPOINT_STEPS", 1, "SOLVER.MAX_ITER", 6,
            "SOLVER.EVAL_PERIOD", 3, "DETECTION.SCORE_THRESHOLD", 0.0]
    whole, cut = (tmp_path / name / "distill" / "run" for name in ("whole", "cut"))
    train(config(root, *opts, "LOG.PREFIX", str(tmp_path / "whole")))
    cfg = config(root, *opts, "LOG.PREFIX", str(tmp_path / "cut"))
    for number, step in enumerate((2, 2, 3)):  # when steps 2, 3 (the last of its epoch) and 5 of the run begin
        assert killed(step, cfg, tmp_path, resume=number > 0) == -signal.SIGKILL, (tmp_path / "err").read_text()
    train(cfg, resume=True)
    assert all(torch.equal(value, weights(cut)[key]) for key, value in weights(whole).items())
    last = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (whole, cut)]
    assert {k: v for k, v in last[0].items() if "second" not in k} == {
        k: v for k, v in last[1].items() if "second" not in k}
    summary = json.loads((whole / "summary.json").read_text())
    assert {"last_ap", "best_ap", "last_ap50", "last_ap75"} <= set(summary) and summary["status"] == "done"
    found = []
    for folder in (whole, cut):
        done = run_tool("eval", ["--run", folder, "--results", folder / "found.json"], REPOSITORY)
        assert done.returncode == 0, done.stderr
        found.append((folder / "found.json").read_text())
    assert found[0] == found[1] and {one["image_id"] for one in json.loads(found[0])} == {100, 101, 102}


def command(*opts, processes=1):
    if processes == 1:
        return run_tool("train", opts, REPOSITORY)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*start, "tools/train.py", *map(str, opts)], cwd=REPOSITORY, capture_output=True, text=True,
                          timeout=300)


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(root, tmp_path):
    from mdistiller.config.loading import dump_cfg

    file = tmp_path / "run.yaml"
    opts = ["DISTILLER.TYPE", "EA-KD", "EXPERIMENT.NAME", "run", "DEVICE", "cpu"]  # images of 48 and 64 pixels
    file.write_text(dump_cfg(config(root, *opts)))
    for processes in (1, 2):
        done = command("--cfg", file, "LOG.PREFIX", tmp_path / str(processes), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (weights(tmp_path / name / "distill" / "run") for name in "12")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-5, msg=key)


def test_broken_annotations_end_the_command_in_one_line(tmp_path):
    write_coco(tmp_path, change=lambda content: content["annotations"][0].update(category_id=4))
    done = command("--cfg", "configs/coco_tiny/kd/r18_mv2.yaml", "DATASET.ROOT", tmp_path, "LOG.PREFIX", tmp_path / "o")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "annotation 1: category 4 is not in the file" in done.stderr


def test_a_run_without_the_library_of_its_metrics_ends_before_it_makes_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"needs faster-coco-eval: pip install 'mdistiller-ea\[detection\]'"):
        train(config(root, "DISTILLER.TYPE", "NONE", "LOG.PREFIX", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_no_method_file_names_detection():
    for path in sorted((REPOSITORY / "mdistiller" / "distillers").glob("*.py")):
        text = path.read_text().lower()
        assert not re.findall(r"\bdetect\w*|\bproposal\w*|\bbox(?:es)?\b|\broi\w*|\brpn\w*", text), path
    assert {"KD", "DKD", "REVIEWKD"} <= {name.upper() for name in DISTILLERS}


def test_entropy_reduction_and_training_step_exist_once():
    defined, stepping = Counter(), set()
    for path in (REPOSITORY / "mdistiller").rglob("*.py"):
        text = path.read_text()
        defined.update(node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
        if ".backward(" in text:
            stepping.add(path.relative_to(REPOSITORY / "mdistiller").parts[0])
    assert defined["entropy"] == defined["weighted_mean"] == 1
    assert not stepping & {"distillers", "losses", "tasks", "models", "data"}


def test_autocast_to_bfloat16_gives_finite_float32_losses(root):
    run = build_run(config(root, "DISTILLER.TYPE", "EA-KD"), torch.device("cpu"))
    batch = next(run.data.train_batches(1))
    batch.pop("share", None)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = run.distiller(epoch=1, **batch)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


def test_released_pixel_mean_changes_only_the_student(root):
    for released, mean in ((False, [123.675, 116.28, 103.53]), (True, [103.53, 116.28, 123.675])):
        run = build_run(config(root, "DISTILLER.TYPE", "KD", "DATASET.RELEASED_PIXEL_MEAN", released),
                        torch.device("cpu"), weights=False)
        assert run.distiller.student.model.transform.image_mean == mean
        assert run.distiller.teacher.model.transform.image_mean == [123.675, 116.28, 103.53]


def test_meters_separate_foreground_and_background():
    meters = Meters(2, torch.device("cpu"))
    parts, front = {"foreground": "background"}, torch.tensor([True, False, False, False])
    monitor = {"weight": torch.tensor([4.0, 1.0, 1.0, 2.0]), "loss": torch.tensor([3.0, 0.5, 0.5, 0.0])}
    monitor |= {f"entropy_{role}": torch.ones(4) for role in ("student", "teacher")}
    meters.write(0, meters.row({"kd": torch.tensor(1.0)}, 4, {"foreground": front}, monitor, parts), 4)
    meters.write(1, meters.row({"kd": torch.tensor(1.0)}, 4, {"foreground": ~front}, monitor, parts), 4)
    found = meters.epoch_values()
    assert found["train_loss"] == 1 and found["train_foreground"] == 50 and found["weight_mean"] == 2
    assert found["weight_foreground"] == (4 + 4) / 4 and found["weight_background"] == (4 + 4) / 4
    assert found["loss_share_foreground"] == 50 and found["loss_share_background"] == 50
    one = Meters(1, torch.device("cpu"))
    row = one.row({"kd": torch.tensor(1.0)}, 4, {"foreground": front}, {"loss": monitor["loss"]}, parts)  # no weights
    one.write(0, row, 4)
    found = one.epoch_values()
    assert found["weight_foreground"] == found["weight_background"] == 1 and found["loss_share_foreground"] == 75


@pytest.mark.parametrize("method", ["KD", "EA-KD"])
def test_a_run_records_what_foreground_and_background_weigh(root, tmp_path, method):
    cfg = config(root, "DISTILLER.TYPE", method, "SOLVER.MAX_ITER", 2, "SOLVER.EVAL_PERIOD", 2)
    folder = _folder(cfg, tmp_path)
    run_to_end(Trainer(build_run(cfg, torch.device("cpu")), folder).steps())
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    part = row["train_foreground"] / 100
    mean = part * row["weight_foreground"] + (1 - part) * row["weight_background"]
    assert mean == pytest.approx(row.get("weight_mean", 1), rel=1e-5) and ("weight_mean" in row) == (method == "EA-KD")
    assert row["loss_share_foreground"] + row["loss_share_background"] == pytest.approx(100)


def test_a_run_is_drawn_and_its_report_shows_the_picture(root, tmp_path):
    folder = tmp_path / "o" / "distill" / "run"
    train(config(root, "DISTILLER.TYPE", "KD", "SOLVER.MAX_ITER", 1, "SOLVER.EVAL_PERIOD", 1, "LOG.PREFIX",
                 str(tmp_path / "o"), "EXPERIMENT.NAME", "run"))
    assert 'id="detections"' not in report(tmp_path / "o")
    path = draw_run(folder, 2, 0.0, None)
    with Image.open(path) as sheet:  # each image of 64 pixels or less is enlarged to 256 or more, in three rows
        assert path == folder / "detections.png" and sheet.height >= 3 * 256 and sheet.width >= 2 * 256
    page = report(tmp_path / "o")
    assert page.count('<img alt="Detections of KD, r18"') == 1


def test_a_student_exported_as_torchscript_gives_the_same_detections(root, tmp_path):
    cfg = config(root, "DISTILLER.TYPE", "KD", "SOLVER.MAX_ITER", 1, "SOLVER.EVAL_PERIOD", 1,
                 "DETECTION.SCORE_THRESHOLD", 0.0)
    folder = _folder(cfg, tmp_path)
    run = build_run(cfg, torch.device("cpu"))
    run_to_end(Trainer(run, folder).steps())
    with pytest.raises(UserError, match="onnx cannot hold a network for coco; expected one of pth, safetensors, torch"):
        export_run(folder.path, formats=["onnx"])
    *_, script, metadata = export_run(folder.path, formats=["torchscript"])
    assert json.loads(metadata.read_text())["input"]["shape"] == [3, 64, 64]
    module, student = torch.jit.load(script), run.distiller.student.eval()
    for image in images((64, 64), (64, 64), seed=3):
        (expected,) = student.detect([image])
        found = dict(zip(("boxes", "scores", "labels"), module(image), strict=True))
        assert len(found["scores"]) > 3
        for key, values in expected.items():
            torch.testing.assert_close(found[key], values, atol=1e-3, rtol=1e-4)
    with pytest.raises(Exception, match="traced for images of one size"):
        module(images((48, 64))[0])
