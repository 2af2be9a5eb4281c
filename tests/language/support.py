"""A small run of language models, in memory."""

import torch

from mdistiller.config import load_cfg
from mdistiller.data import build_data
from mdistiller.distillers import build_distiller
from mdistiller.tasks import build_task

TINY = ("DISTILLER.TEACHER", "tiny_2x64", "DISTILLER.STUDENT", "tiny_1x32", "DEVICE", "cpu", "SOLVER.BATCH_SIZE", 8,
        "DATASET.TRAIN_FRACTION", 0.05)


def config(method="EA-FKL", *opts):
    return load_cfg("configs/words/base.yaml", [*TINY, "DISTILLER.TYPE", method, *opts])


def distiller_of(cfg, data=None):
    """(distiller, data) with random networks, the same ones for any settings."""
    data = data or build_data(cfg, "cpu")
    task = build_task(cfg, data.info)
    torch.manual_seed(0)
    student, teacher = task.network("STUDENT"), task.network("TEACHER")
    with torch.no_grad():
        for parameter in teacher.parameters():  # a teacher that is confident on some tokens
            parameter.mul_(3.0)
    return build_distiller(cfg, student, teacher.eval(), data.info, task), data


def step(cfg, batch=None):
    """(losses, gradients by name, distiller) of one batch."""
    distiller, data = distiller_of(cfg)
    batch = dict(batch or next(data.train_batches(1)))
    batch.pop("share", None)
    _, losses = distiller(**batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}, distiller


def assert_same(first, second, atol=1e-6):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=atol, msg=lambda text, name=name:
                                   f"{name}: {text}")
