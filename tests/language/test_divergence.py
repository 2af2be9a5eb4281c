"""The divergences of language models: reference numbers, limits, and their use as methods."""

import math

import pytest
import torch
import torch.nn.functional as F

from mdistiller.distillers import divergence as d
from mdistiller.distillers.kd import kd_loss
from tests.language.goldens import CASES, LOSSES, Case

TOLERANCES = {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 2e-5, "atol": 2e-5}}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_every_divergence_equals_the_reference_token_by_token(case, name, temperature, dtype):
    found = Case(case, dtype)
    if not found.has(f"{name}_token@T{temperature}"):
        assert case == "same" and name == "adaptive_kl"  # 0 / 0 in the reference
        return
    loss = LOSSES[name](found.student, found.teacher, temperature)
    assert loss.dtype == dtype and loss.shape == (len(found.target),)
    tolerance = TOLERANCES[dtype] if case != "peaky" or dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(loss.double(), found.value(f"{name}_token@T{temperature}"), **tolerance)
    reference = found.value(f"ref_{name}_sum@T{temperature}")  # computed in float32
    torch.testing.assert_close(loss.double().sum(), reference, rtol=5e-3 if case == "peaky" else 2e-5, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "adaptive_kl"])
def test_objective_and_gradient_at_rate_one_half_equal_the_reference(name):
    case = Case("small")
    student = case.student.clone().requires_grad_()
    loss = 0.5 * F.cross_entropy(student, case.target) + 0.5 * LOSSES[name](student, case.teacher, 2.0).mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), case.value(f"{name}_objective@T2_rate0.5"), rtol=1e-9, atol=0)
    torch.testing.assert_close(student.grad, case.value(f"{name}_grad@T2_rate0.5"), rtol=0, atol=1e-9)


def test_means_of_other_code_bases_are_reached_by_their_settings():
    for name in CASES:
        case = Case(name)
        student, teacher = case.student, case.teacher
        teacher_entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1)
        expected = {
            "distillm_forward_kl_mean": d.forward_kl(student, teacher) + teacher_entropy,
            "distillm_reverse_kl_mean": d.reverse_kl(student, teacher),
            "distillm_js_lam0.5_mean": d.generalized_js(student, teacher, beta=0.5),
            "distillm_js_lam0.9_mean": d.generalized_js(student, teacher, beta=0.1),
            "distillm_skewed_reverse_kl_mean": d.skewed_reverse_kl(student, teacher),
            "distillm_skewed_forward_kl_mean": d.skewed_forward_kl(student, teacher) + teacher_entropy,
            "trl_jsd_beta0@T2_mean": d.forward_kl(student, teacher, 2.0),
            "trl_jsd_beta0.1@T2_mean": d.generalized_js(student, teacher, 2.0, beta=0.1),
            "trl_jsd_beta0.9@T1_mean": d.generalized_js(student, teacher, 1.0, beta=0.9),
            "trl_jsd_beta1@T1_mean": d.reverse_kl(student, teacher),
        }
        for key, loss in expected.items():
            torch.testing.assert_close(loss.mean(), case.value(key), rtol=5e-3 if name == "peaky" else 5e-5, atol=2e-5,
                                       msg=lambda text, key=key, name=name: f"{name} {key}: {text}", check_dtype=False)


def test_forward_kl_is_the_kd_loss_without_the_square_of_the_temperature():
    case = Case("small")
    torch.testing.assert_close(
        9 * d.forward_kl(case.student, case.teacher, 3.0), kd_loss(case.student, case.teacher, 3.0)
    )


def test_logits_five_hundred_nats_apart_give_the_limits_of_every_divergence_and_finite_gradients():
    student = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 500.0, 0.0]])
    expected = {
        "forward_kl": 500.0, "reverse_kl": 500.0, "js_divergence": math.log(2),
        "skewed_forward_kl": math.log(10), "skewed_reverse_kl": math.log(10), "adaptive_kl": 500.0,
    }
    for name, loss in LOSSES.items():
        value = loss(student, teacher)
        torch.testing.assert_close(value.detach(), torch.tensor([expected[name]]), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert torch.isfinite(gradient).all(), name


def test_divergences_of_equal_logits_are_zero():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for name, loss in LOSSES.items():
        torch.testing.assert_close(loss(logits, logits.clone(), 2.0), torch.zeros(5), rtol=0, atol=1e-6, msg=name)


def test_the_generalized_js_divided_by_its_share_tends_to_forward_and_to_reverse_kl():
    case = Case("small")
    near = d.generalized_js(case.student, case.teacher, beta=1e-6) / 1e-6
    torch.testing.assert_close(near, d.forward_kl(case.student, case.teacher), rtol=1e-4, atol=1e-5)
    near = d.generalized_js(case.student, case.teacher, beta=1 - 1e-6) / 1e-6
    torch.testing.assert_close(near, d.reverse_kl(case.student, case.teacher), rtol=1e-4, atol=1e-5)
    for beta in (0, 1):
        assert d.generalized_js(case.student, case.teacher, beta=beta).abs().max() < 1e-12


def test_adaptive_kl_is_reverse_kl_where_every_class_is_in_the_tail():
    """In float32 the probabilities of a row often sum to a little more than 1."""
    student, teacher = torch.randn(2, 200, 10, generator=torch.Generator().manual_seed(0)).unbind()
    adaptive, reverse = LOSSES["adaptive_kl"](student, teacher, alpha=1.0), LOSSES["reverse_kl"](student, teacher)
    torch.testing.assert_close(adaptive, reverse)


def test_bfloat16_logits_are_widened_before_they_are_divided_by_the_temperature():
    logits = torch.tensor([[1.0078125, -3.015625, 0.50390625]], dtype=torch.bfloat16)
    other = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16)
    for name, loss in LOSSES.items():
        torch.testing.assert_close(loss(logits, other, 3.0), loss(logits.float(), other.float(), 3.0), msg=name)
