"""Transformed teacher matching: goldens, the power sum by hand, and logits too far apart for probabilities."""

import math

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.distillers.ttm import ttm_loss, wttm_loss
from mdistiller.errors import UserError
from tests.distillers.support import fixed_step
from tests.golden_files import case_name, close, load, logit_cases, tensors, tolerance_of

PRECISIONS = [torch.float64, torch.float32]
CASES = logit_cases("ttm", "wttm", "ea_ttm")
HOST = {"ttm": "TTM", "ea_ttm": "TTM", "wttm": "WTTM"}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", CASES, ids=case_name)
def test_per_sample_losses(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    student, teacher = tensors(case, "student_logits", "teacher_logits", dtype=dtype)
    loss = (wttm_loss if HOST[entry["method"]] == "WTTM" else ttm_loss)(student, teacher, case["gamma"])
    close(loss, case["per_sample_f64"], tolerance)
    if "power_sum_f64" in case:
        close(loss / ttm_loss(student, teacher, case["gamma"]), case["power_sum_f64"], tolerance, "power sum")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", CASES, ids=case_name)
def test_training_losses_and_gradients(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    student, teacher = tensors(case, "student_logits", "teacher_logits", dtype=dtype)
    baseline = HOST[entry["method"]]
    opts = [f"{baseline}.GAMMA", case["gamma"], f"{baseline}.BETA", 1.0]
    if entry["method"] == "ea_ttm":
        opts += ["EA.TEMPERATURE", case["T_prime"], "EA.UPPER_BOUND", case["H_ub"]]
        baseline = f"EA-{baseline}"
    losses, gradient = fixed_step(baseline, student, teacher, torch.zeros(len(student), dtype=torch.long), *opts)
    close(losses["kd"], case["loss_f64"], tolerance, "loss")
    close(gradient, case["grad_student_f64"], tolerance, "gradient")


@pytest.mark.parametrize("gamma, power_sum", [(0.1, 63.0957344), (1.0, 1.0), (2.0, 0.01)])
def test_a_uniform_teacher_of_100_classes_has_the_power_sum_100_to_the_1_minus_gamma(gamma, power_sum):
    student, teacher = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 100)
    torch.testing.assert_close(wttm_loss(student, teacher, gamma), power_sum * ttm_loss(student, teacher, gamma))


def test_a_one_hot_teacher_has_the_power_sum_1_and_the_cross_entropy():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[1e3, -1e3]])
    for loss in (ttm_loss, wttm_loss):
        torch.testing.assert_close(loss(student, teacher, 0.5), torch.tensor([math.log(1 + math.exp(-1))]))


def test_a_probability_that_underflows_in_float32_still_counts_after_the_power():
    """A logit gap of 120 at gamma 0.1 is exp(-12), not 0."""
    teacher = torch.tensor([[120.0, 0.0]])
    target = torch.tensor([12.0, 0.0]).softmax(0)
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    ttm_loss(student, teacher, 0.1).sum().backward()
    torch.testing.assert_close(student.grad[0], student.detach()[0].softmax(0) - target, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["TTM", "WTTM"])
def test_a_temperature_of_zero_is_refused(name):
    with pytest.raises(UserError, match=f"{name}.GAMMA: expected a number greater than 0 and at most 1000; found 0"):
        load_cfg(None, ["DISTILLER.TYPE", name, f"{name}.GAMMA", 0])


def test_the_two_methods_have_their_own_settings():
    cfg = load_cfg(None, ["DISTILLER.TYPE", "WTTM", "WTTM.BETA", 3])
    assert (cfg.TTM.GAMMA, cfg.TTM.BETA, cfg.WTTM.GAMMA, cfg.WTTM.BETA) == (0.1, 45.0, 0.2, 3.0)
