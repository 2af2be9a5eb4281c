"""Prime-aware distillation, a reconstruction without goldens: properties that do not depend on uncertain choices."""

import math

import pytest
import torch
import torch.nn.functional as F

from mdistiller.config import load_cfg
from mdistiller.distillers.pad import pad_loss
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.distillers.support import tiny_batch, tiny_distiller

LATE = {"epoch": 100}  # after any warm-up


def embeddings(seed=0):
    return torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_with_log_variance_and_eps_zero_the_loss_is_the_mean_squared_error():
    student, teacher = embeddings()
    loss = pad_loss(student, teacher, torch.zeros_like(student), 0.0)
    torch.testing.assert_close(loss, (student - teacher).square().mean(1), rtol=0, atol=0)


@pytest.mark.parametrize("error", [0.01, 1.0, 25.0])
def test_the_best_log_variance_is_the_log_of_the_squared_error(error):
    """e / exp(s) + s is least at s = log e, where it is 1 + log e."""
    student, teacher = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), math.sqrt(error), dtype=torch.float64)
    s = torch.full((1, 1), math.log(error), dtype=torch.float64, requires_grad=True)
    loss = pad_loss(student, teacher, s, 0.0)
    torch.testing.assert_close(loss, 1 + s.detach()[0])
    assert torch.autograd.grad(loss.sum(), s)[0].abs().item() < 1e-12
    for other in (-0.1, 0.1):
        assert pad_loss(student, teacher, s.detach() + other, 0.0) > loss


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1), (4,)])
def test_the_students_gradient_is_the_difference_over_the_variance(eps, shape):
    student, teacher = embeddings()
    s = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(pad_loss(student, teacher, s, eps).sum(), student)
    torch.testing.assert_close(gradient, 2 * (student - teacher) / (s.reshape(4, -1).exp() + eps) / 6)


def test_the_branch_is_trained_and_absent_from_the_exported_student():
    distiller = tiny_distiller("PAD")
    assert distiller.student.state_dict().keys() == build_model("resnet8", 10).state_dict().keys()
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student", "branch"}
    before = {key: value.clone() for key, value in distiller.branch.named_parameters()}
    sum(distiller(**(tiny_batch() | LATE))[1].values()).backward()
    torch.optim.SGD(distiller.learnable_parameters(), lr=1.0).step()
    moved = {key for key, value in distiller.branch.named_parameters() if not torch.equal(value, before[key])}
    assert moved >= {"0.weight", "1.weight", "1.bias"}


@pytest.mark.parametrize("value", [-200.0, -90.0, 90.0, 200.0])
def test_no_log_variance_overflows_in_float32(value):
    student, teacher = embeddings().float()
    s = torch.full((4, 6), value, requires_grad=True)
    loss = pad_loss(student, teacher, s, 1e-5)
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), s)[0].isfinite().all()


def test_warm_up_is_the_plain_squared_error_in_which_every_parameter_takes_part():
    distiller = tiny_distiller("PAD", "PAD.WARMUP", 3, "PAD.LOSS.FEAT_WEIGHT", 2.0)
    batch = tiny_batch()
    early, late = (distiller(**(batch | {"epoch": epoch}))[1]["pad"] for epoch in (3, 4))
    student, teacher = (net(batch["image"]).features["pooled_feat"] for net in (distiller.student, distiller.teacher))
    torch.testing.assert_close(early, 2 * F.mse_loss(student, teacher))
    assert not torch.isclose(early, late)
    early.backward()
    assert all(parameter.grad is not None for parameter in distiller.branch.parameters())


VARIANTS = [("dimension", 1), ("dimension", 2), ("sample", 1), ("sample", 2)]


@pytest.mark.parametrize("variance, layers", VARIANTS)
@pytest.mark.parametrize("teacher", ["resnet14", "wrn_16_2"])  # of the student's width, and wider
@pytest.mark.parametrize("size", [1, 4])
def test_every_variant_trains_on_every_pair_even_with_a_batch_of_one(variance, layers, teacher, size):
    distiller = tiny_distiller("PAD", "PAD.VARIANCE", variance, "PAD.BRANCH_LAYERS", layers, teacher=teacher)
    losses = distiller(**(tiny_batch(size=size) | LATE))[1]
    losses["pad"].backward()
    assert losses["pad"].isfinite()
    own = [*distiller.branch.parameters(), *distiller.projection.parameters()]
    assert own and all(parameter.grad.isfinite().all() for parameter in own)
    width = distiller.dry_run()[1].features["pooled_feat"].shape[1]
    assert distiller.branch[-1].num_features == (width if variance == "dimension" else 1)


def test_detaching_the_branch_keeps_its_gradient_from_the_student():
    def gradient_through_the_branch(detach):
        distiller = tiny_distiller("PAD", "PAD.DETACH_BRANCH", detach)
        inputs = []
        distiller.branch.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        distiller(**(tiny_batch() | LATE))
        return inputs[0].requires_grad

    assert gradient_through_the_branch(False) and not gradient_through_the_branch(True)


@pytest.mark.parametrize("key, value", [("VARIANCE", "batch"), ("BRANCH_LAYERS", 3), ("EPS", -1.0)])
def test_a_wrong_setting_is_one_line_that_names_the_key(key, value):
    with pytest.raises(UserError, match=f"PAD.{key}: expected .*; found"):
        load_cfg(None, ["DISTILLER.TYPE", "PAD", f"PAD.{key}", value])
