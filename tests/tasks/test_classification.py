"""The numbers of image classification, by hand."""

import math

import pytest
import torch
from torch import nn

from mdistiller.tasks import TASKS, TaskOutput
from mdistiller.tasks.classification import evaluate
from tests.distillers.support import Fixed, distiller_of


def test_the_evaluation_counts_each_image_once_whatever_its_batch():
    logits = math.log(2) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]).expand(5, 6)  # probabilities 32, 16, .. 1 / 63
    target = torch.tensor([0, 0, 1, 5, 4])  # the first class twice, the second, the last and the fifth
    batches = [{"image": logits[rows], "target": target[rows]} for rows in (slice(0, 3), slice(3, 5))]
    assert evaluate(nn.Identity(), batches) == pytest.approx({
        "top1": 40.0, "top5": 80.0, "count": 5,
        "loss": math.log(63) - (5 + 5 + 4 + 0 + 1) / 5 * math.log(2),
        "entropy": math.log(63) - (32 * 5 + 16 * 4 + 8 * 3 + 4 * 2 + 2 * 1) / 63 * math.log(2),
    })


def test_label_smoothing_gives_its_share_to_all_classes_alike():
    logits, target = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0])
    expected = 0.8 * math.log(2) + 2 * 0.1 * math.log(4)  # of 0.3, each of the three classes gets 0.1
    for task in ("classification", "language"):
        loss = TASKS[task].supervised(None, [TaskOutput(logits)], target, 0.3)["ce"]
        assert loss.item() == pytest.approx(expected)
    distiller = distiller_of("NONE", Fixed(logits), None, "SOLVER.LABEL_SMOOTHING", 0.3)
    assert distiller(torch.zeros(1, 3, 8, 8), target)[1]["ce"].item() == pytest.approx(expected)
