"""What a step of distillation costs, counted and not timed: forward passes of both networks and operations of EA."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mdistiller.config import load_cfg
from mdistiller.engine.setup import build_run
from mdistiller.engine.sharing import Alone
from mdistiller.models.detection import Detector
from tests.detection.support import config, write_coco

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTED = REPOSITORY / "configs" / "digits_detection" / "ea_kd" / "r18_mv2.yaml"
HEAVY = ("conv", "mm", "pool", "roi_align", "batch_norm", "group_norm", "upsample", "nms", "sort", "topk")


class Operations(TorchDispatchMode):
    """Counts the operations that run inside it by name, and the elements that they produce."""

    def __init__(self):
        super().__init__()
        self.calls, self.elements = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.calls[name] += 1
        for one in result if isinstance(result, tuple | list) else [result]:
            self.elements[name] += one.numel() if isinstance(one, torch.Tensor) else 0
        return result


class OneData(Alone):
    """Runs with the same data, whose images are drawn once."""

    made = None

    def data(self, cfg, make):
        self.made = self.made or make()
        return self.made


def counted_step(cfg, shared):
    """(operations, number of logits) of the forward and backward pass of a training step."""
    run = build_run(cfg, torch.device("cpu"), shared=shared)
    batch = next(run.data.train_batches(1))
    batch.pop("share", None)
    torch.manual_seed(0)
    with Operations() as operations:
        logits, losses = run.distiller(epoch=1, **batch)
        sum(losses.values()).backward()
    return operations, logits.numel()


def test_sample_weights_add_few_operations_on_the_logits_and_none_on_images():
    """At the size of a real run, what EA adds produces less than 0.1 % of the elements that a step of KD produces."""
    opts, shared = ["DISTILLER.TEACHER_CHECKPOINT", "random"], OneData()
    (plain, _), (weighted, size) = (
        counted_step(load_cfg(WEIGHTED, [*opts, "DISTILLER.TYPE", name]), shared) for name in ("KD", "EA-KD"))
    added, elements = weighted.calls - plain.calls, (weighted.elements - plain.elements).total()
    assert 0 < added.total() <= 30
    assert not any(heavy in name for name in added for heavy in HEAVY)
    assert elements <= 12 * size and elements < plain.elements.total() / 1000


@pytest.mark.parametrize("method", ["KD", "EA-KD", "EA-DKD", "EA-REVIEWKD"])
def test_each_network_runs_once_in_a_step_and_both_see_the_same_pixels(tmp_path, monkeypatch, method):
    run = build_run(config(write_coco(tmp_path), "DISTILLER.TYPE", method), torch.device("cpu"))
    calls, seen, normalise = Counter(), [], Detector.normalise

    def record(self, batch):
        seen.append(batch.tensors)
        return normalise(self, batch)

    monkeypatch.setattr(Detector, "normalise", record)
    for role in ("student", "teacher"):
        model = getattr(run.distiller, role).model
        parts = {"backbone": model.backbone, "proposals": model.rpn, "head": model.roi_heads.box_head}
        for name, part in parts.items():
            part.register_forward_hook(lambda *_, key=(role, name): calls.update([key]))
    sizes, steps = set(), list(run.data.train_batches(1))
    for batch in steps:  # the shorter side is 48 or 64 pixels
        batch.pop("share", None)
        run.distiller(epoch=1, **batch)
        assert len(seen) == 2 and torch.equal(*seen)
        sizes.add(tuple(batch["canvas"]))
        seen.clear()
    assert len(sizes) > 1
    once = {("student", "backbone"), ("student", "proposals"), ("student", "head"), ("teacher", "backbone"),
            ("teacher", "head")}
    assert dict(calls) == dict.fromkeys(once, len(steps))
