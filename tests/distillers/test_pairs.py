"""Every method, plain and entropy-adaptive, trains every pair of networks of the paper's Table 2."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS, Distiller, build_distiller
from mdistiller.errors import UserError
from mdistiller.models import build_model
from mdistiller.runs.paper import load_tables

REPOSITORY = Path(__file__).resolve().parents[2]
PAIRS = list(load_tables()["2"].columns)
CLASSES, IMAGES, BATCH = 100, 400, 4
DATA = {"name": "cifar100", "num_classes": CLASSES, "num_train": IMAGES, "image_size": 32,
        "targets": torch.arange(IMAGES) % CLASSES}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    """(name, config file, teacher, student, passes): the networks are built once, `passes` are those of the teacher."""
    path = REPOSITORY / "configs" / "cifar100" / "kd" / f"{request.param}.yaml"
    torch.manual_seed(0)
    names = load_cfg(path).DISTILLER
    return request.param, path, build_model(names.TEACHER, CLASSES), build_model(names.STUDENT, CLASSES), {}


def share_passes(distiller, passes):
    """Let a method get what the teacher in eval mode made of these images for another method."""
    own = distiller.run_teacher
    if distiller.teacher_mode != "eval" or type(distiller).run_teacher is not Distiller.run_teacher:
        return

    def run_teacher(inputs, student=None):
        if inputs not in passes:
            passes[inputs] = own(inputs, student)
        return passes[inputs]

    distiller.run_teacher = run_teacher


@cache
def batch(epoch):
    generator = torch.Generator().manual_seed(epoch)
    images = torch.randn(2, BATCH, 3, 32, 32, generator=generator)
    target = torch.randint(CLASSES, (BATCH,), generator=generator)
    index = torch.arange(BATCH) * CLASSES + target  # as the targets above have it
    return {"image": images[0], "image_strong": images[1], "target": target, "index": index % IMAGES, "epoch": epoch}


def refusal(method, pair):
    """Why the method cannot use the pair, in the words of docs/methods.md; None if it can."""
    page = (REPOSITORY / "docs" / "methods.md").read_text()
    found = re.search(rf"^\| {method} \| {pair} \| (.*) \|$", page, re.MULTILINE)
    return found and found[1]


def moved(before, after):
    """The keys whose tensors differ between a state dict and a network."""
    after = after.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


@pytest.mark.parametrize("method", sorted(name for name in DISTILLERS if not DISTILLERS[name].weighted))
def test_a_step_of_the_method_and_one_of_its_ea_variant_on_every_pair(method, pair):
    pair_name, path, teacher, student, passes = pair
    own_teacher = deepcopy(teacher) if DISTILLERS[method].teacher_mode == "train" else teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    reached = set()
    for name, epoch in ((method, 1), (f"EA-{method}", 25)):  # within the warm-ups, and after them
        cfg = load_cfg(path, ["DISTILLER.TYPE", name, "CRD.NCE.K", 50])
        try:
            distiller = build_distiller(cfg, deepcopy(student), own_teacher, DATA)
        except UserError as error:
            assert refusal(method, pair_name) == str(error).replace("|", "/")
            continue
        assert refusal(method, pair_name) is None
        if distiller.varying_modules:
            distiller.extra_paths = len(distiller.paths)  # all of them, so that every module takes part
        share_passes(distiller, passes)
        take_a_step(distiller, epoch)
        reached |= {key for key, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
        assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())
        assert all(parameter.grad is None for parameter in distiller.teacher.parameters())
        learned = {key: p for key, p in distiller.student.named_parameters() if p.requires_grad}
        kernels = {key for key, p in learned.items() if p.dim() > 1}  # a scale that the next norm undoes may not change
        assert kernels and not sorted(kernels - moved(student.state_dict(), distiller.student)), "not changed"
    if refusal(method, pair_name) is None:
        trained = {key for key, parameter in distiller.named_parameters() if parameter.requires_grad}
        assert not sorted(trained - reached), "without a gradient"
        statistics = {key for key in teacher.state_dict() if "running_" in key or "num_batches" in key}
        expected = statistics if distiller.teacher_mode == "train" else set()
        assert sorted(moved(before, distiller.teacher)) == sorted(expected)


def take_a_step(distiller, epoch):
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=0.01)
    torch.manual_seed(epoch)
    logits, losses = distiller(**batch(epoch))
    assert logits.shape == (BATCH, CLASSES) and all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    optimizer.step()
