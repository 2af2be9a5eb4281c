"""Classes excluded by a logit of -inf: the losses are those of a very low logit, and their gradients are finite."""

import math

import pytest
import torch

from mdistiller import losses

LOW = -1e5  # of which exp is 0, also after the division by a temperature
TARGET = torch.tensor([0, 1, 2])


def summed(terms):
    return sum(term.sum() for term in terms.values())


LOGIT_LOSSES = {  # functions of the logits of student and teacher (3, 5) and of a temperature, a tensor
    "kd": losses.kd_loss,
    "ctkd": losses.ctkd_loss,
    "ctkd of instances": lambda s, t, tau: losses.ctkd_loss(s, t, tau.expand(3)),
    "dkd": lambda s, t, tau: losses.dkd_loss(s, t, TARGET, 1.0, 8.0, 4.0),
    "nkd": lambda s, t, tau: losses.nkd_loss(s, t, TARGET, 1.0, 1.5),
    "rld": lambda s, t, tau: losses.rld_loss(s, t, TARGET, 1.0, 8.0, 4.0, 1.0),
    "ttm": lambda s, t, tau: losses.ttm_loss(s, t, 0.1),
    "wttm": lambda s, t, tau: losses.wttm_loss(s, t, 0.1),
    "dist": lambda s, t, tau: summed(losses.dist_losses(s, t, 4.0)),
    "crld": lambda s, t, tau: summed(losses.crld_losses(s, s, t, t, 4.0, 0.2, 0.2)),
    "mld": lambda s, t, tau: summed(losses.mld_losses(s, s, t, t, 4.0)),
    "mld per sample": lambda s, t, tau: summed(losses.mld_losses(s, s, t, t, 4.0, masking="per_sample")),
    "sdd": lambda s, t, tau: losses.sdd_loss(
        s[:, None], t[:, None], TARGET, lambda *cell: losses.dkd_loss(*cell, 1.0, 8.0, 4.0), 2.0),
    "wkd": lambda s, t, tau: losses.wkd_loss(s, t, TARGET, 1 - torch.eye(5).double(), 8.0),
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "generalized_js": losses.generalized_js,
    "skewed_forward_kl": losses.skewed_forward_kl,
    "skewed_reverse_kl": losses.skewed_reverse_kl,
    "adaptive_kl": losses.adaptive_kl,
}
REVERSE = ("reverse_kl", "adaptive_kl")  # infinite if only the teacher excludes a class


def value_and_gradients(loss, excluded, by_student):
    """Of the loss of random logits with one class excluded from both or from the teacher by the logit `excluded`."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    teacher[:, 3] = excluded
    if by_student:
        student[:, 3] = excluded
    inputs = [tensor.requires_grad_() for tensor in (student, teacher, torch.tensor([2.0], dtype=torch.float64))]
    value = loss(*inputs)
    return value, torch.autograd.grad(value.sum(), inputs, materialize_grads=True)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("by_student", [True, False], ids=["by both", "by the teacher"])
def test_an_excluded_class_is_one_of_a_very_low_logit(name, by_student):
    loss = LOGIT_LOSSES[name]
    value, gradients = value_and_gradients(loss, -math.inf, by_student)
    if name in REVERSE and not by_student:
        assert bool(value.isposinf().all())
        return
    expected, expected_gradients = value_and_gradients(loss, LOW, by_student)
    if name != "ctkd of instances":  # its smoothing raises a low probability to 1e-7, but not that of an excluded class
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients[:2], expected_gradients[:2])
    assert all(bool(found.isfinite().all()) for found in (value, *gradients))


@pytest.mark.parametrize("name", sorted(set(LOGIT_LOSSES) - set(REVERSE)))
def test_a_teacher_that_excludes_all_classes_but_the_target_gives_finite_losses(name):
    student = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.full((3, 5), -math.inf, dtype=torch.float64).scatter(1, TARGET[:, None], 0.0)
    value = LOGIT_LOSSES[name](student, teacher, torch.tensor([2.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert bool(value.isfinite().all() and gradient.isfinite().all()) and value.max() < 1e3


def test_only_the_term_of_the_target_remains_for_a_one_hot_teacher():
    student, teacher = torch.zeros(1, 4), torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    target = torch.tensor([0])
    log_4 = torch.tensor([math.log(4)])  # KL from (1, 0, 0, 0) to four equal probabilities
    torch.testing.assert_close(losses.kd_loss(student, teacher, 1.0), log_4)
    torch.testing.assert_close(losses.dkd_loss(student, teacher, target, 1.0, 8.0, 1.0), log_4)
    torch.testing.assert_close(losses.nkd_loss(student, teacher, target, 1.0, 8.0), log_4)
    torch.testing.assert_close(losses.rld_loss(student, teacher, target, 1.0, 8.0, 1.0, 1.0), log_4)
    assert losses.wkd_loss(student, teacher, target, 1 - torch.eye(4), 1.0).item() == 0


def test_adaptive_kl_leaves_out_an_infinite_divergence_of_weight_zero():
    teacher, student = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.6, 0.4, 0.0]]).log()
    torch.testing.assert_close(losses.adaptive_kl(student, teacher), losses.reverse_kl(student, teacher))
    assert losses.forward_kl(student, teacher).isposinf().all()  # its weight is 0: p and q differ in the tail alone


def test_adaptive_kl_of_a_student_that_has_diverged_is_no_zero():
    teacher = torch.tensor([[1.0, 2.0, 3.0]])
    for value in (math.nan, math.inf):
        assert losses.adaptive_kl(torch.tensor([[value, 0.0, 1.0]]), teacher).isnan().all()
