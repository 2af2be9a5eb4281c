"""Curriculum temperature: goldens of loss, reversal, schedule and module, and the learned temperature."""

import math

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.distillers.ctkd import (
    INSTANCE_SMOOTHING,
    InstanceTemperature,
    cosine_schedule,
    ctkd_loss,
    gradient_reversal,
)
from mdistiller.distillers.kd import kd_loss
from mdistiller.errors import UserError
from tests.distillers.support import Fixed, distiller_of, tiny_batch, tiny_distiller
from tests.golden_files import case_name, close, load, logit_cases, tensors, tolerance_of

PRECISIONS = [torch.float64, torch.float32]
GLOBAL = logit_cases("ctkd", "ea_ctkd")


def leaves(case, *names, dtype):
    return [tensor.requires_grad_() for tensor in tensors(case, *names, dtype=dtype)]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", logit_cases("ctkd"), ids=case_name)
def test_loss_and_gradients_with_one_temperature(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    student, teacher, theta = leaves(case, "student_logits", "teacher_logits", "global_T", dtype=dtype)
    temperature = case["t_start"] + case["t_end"] * gradient_reversal(theta, case["lambda"]).sigmoid()
    loss = ctkd_loss(student, teacher, temperature)
    close(temperature, case["temperature_f64"], tolerance, "temperature")
    close(loss, case["per_sample_f64"], tolerance, "per sample")
    gradients = torch.autograd.grad(loss.mean(), (student, theta, temperature))
    expected = ("grad_student_f64", "grad_global_T_f64", "dloss_dtemperature_f64")
    for gradient, name in zip(gradients, expected, strict=True):
        close(gradient, case[name], tolerance, name)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", logit_cases("ctkd_instance"), ids=case_name)
def test_loss_and_gradients_with_a_temperature_per_sample(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    student, teacher, temperature = leaves(case, "student_logits", "teacher_logits", "temperatures", dtype=dtype)
    smoothing = INSTANCE_SMOOTHING if len(student) == 1 else None  # one temperature alone counts as everyone's
    loss = ctkd_loss(student, teacher, temperature, smoothing)
    close(loss, case["per_sample_f64"], tolerance, "per sample")
    gradients = torch.autograd.grad(loss.mean(), (student, temperature))
    close(gradients[0], case["grad_student_f64"], tolerance, "student")
    close(gradients[1], case["grad_temperatures_f64"], tolerance, "temperatures")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", GLOBAL, ids=case_name)
def test_a_training_step_moves_theta_as_the_reference_does(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    student, teacher, theta = tensors(case, "student_logits", "teacher_logits", "global_T", dtype=dtype)
    opts = ["CTKD.T_START", case["t_start"], "CTKD.T_END", case["t_end"], "CTKD.LOSS.KD_WEIGHT", 1.0,
            "CTKD.LAMBDA_MAX", case["lambda"], "CTKD.LAMBDA_MIN", case["lambda"]]
    if entry["method"] == "ea_ctkd":
        opts += ["EA.TEMPERATURE", case["T_prime"], "EA.UPPER_BOUND", case["H_ub"]]
    name = "EA-CTKD" if entry["method"] == "ea_ctkd" else "CTKD"
    distiller = distiller_of(name, Fixed(student), Fixed(teacher), *opts).to(dtype)
    parameter = distiller.temperature.theta
    with torch.no_grad():
        parameter.copy_(theta)
    _, losses = distiller(torch.zeros(len(student), 3, 8, 8), target=torch.zeros(len(student), dtype=torch.long))
    close(losses["kd"], case["loss_f64"], tolerance, "loss")
    losses["kd"].backward()
    close(distiller.student.logits.grad, case["grad_student_f64"], tolerance, "student")
    close(parameter.grad, case["grad_global_T_f64"], tolerance, "theta")
    if "lr" in case:
        settings = {key: case[key] for key in ("lr", "momentum", "weight_decay")}
        torch.optim.SGD(distiller.learnable_parameters(), **settings).step()
        close(parameter, case["global_T_after_step_f64"], tolerance, "theta after a step")


@pytest.mark.parametrize("entry", logit_cases("ctkd_schedule"), ids=case_name)
def test_cosine_schedule_equals_the_reference(entry):
    case = load("logit", entry["file"])
    values = [cosine_schedule(e, case["max_value"], case["min_value"], case["num_loops"]) for e in case["epochs"]]
    close(values, case["lambda_cosine"], tolerance_of(entry, torch.float64))


def test_schedule_of_ten_epochs_is_half_way_at_five_and_stays_at_the_end():
    assert cosine_schedule(5, 0.0, -1.0, 10) == pytest.approx(-0.5)
    assert cosine_schedule(10, 0.0, -1.0, 10) == cosine_schedule(240, 0.0, -1.0, 10) == -1.0


def test_instance_module_has_the_reference_shapes():
    (entry,) = logit_cases("ctkd_instance_module")
    case = load("logit", entry["file"])
    module = InstanceTemperature(case["num_classes"])
    for layer, name in (("conv1", "layer1"), ("conv2", "layer2")):
        assert list(getattr(module, layer).weight.shape) == list(case[f"{name}_weight_shape"])
        assert list(getattr(module, layer).bias.shape) == list(case[f"{name}_bias_shape"])
    assert list(module.bn.weight.shape) == list(case["bn_shape"])
    raw = module(torch.randn(8, case["num_classes"]), torch.randn(8, case["num_classes"]))
    assert list(raw.shape) == list(case["output_shape"])
    assert torch.equal(1 + 20 * raw.sigmoid(), torch.full((8,), case["initial_temperature"]))


def test_instance_module_reads_both_predictions_in_the_teachers_order():
    module = InstanceTemperature(3)
    seen = []
    module.conv1.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].flatten(1)))
    p_student, p_teacher = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.1, 0.7, 0.2]])
    logits = p_student.log().requires_grad_(), p_teacher.log().requires_grad_()
    module(*logits)
    torch.testing.assert_close(seen[0], torch.tensor([[0.7, 0.2, 0.1, 0.3, 0.5, 0.2]]))
    assert not seen[0].requires_grad


def test_reversal_is_the_identity_forward_and_multiplies_the_gradient_as_it_is():
    x = torch.tensor([3.0, -1.0], requires_grad=True)
    y = gradient_reversal(x, -0.25)
    assert torch.equal(y, x)
    y.backward(torch.tensor([1.0, 2.0]))
    assert torch.equal(x.grad, torch.tensor([-0.25, -0.5]))


def test_two_classes_by_hand():
    """A 3:1 teacher, an undecided student and temperature 1: log 2 less the teacher's entropy."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    torch.testing.assert_close(ctkd_loss(student, teacher, 1.0), torch.tensor([expected]))


@pytest.mark.parametrize("temperature", [7.0, torch.tensor(7.0), torch.tensor([7.0])])
def test_one_temperature_in_any_form_is_plain_distillation(temperature):
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ctkd_loss(student, teacher, temperature), kd_loss(student, teacher, 7.0))


@pytest.mark.parametrize("smoothing", [0.0, INSTANCE_SMOOTHING])
def test_extreme_logits_leave_loss_and_gradients_finite(smoothing):
    student, teacher = (1e3 * torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    temperature = torch.full((4,), 1.5, requires_grad=True)
    loss = ctkd_loss(student, teacher, temperature, smoothing)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (student, teacher, temperature)))
    assert loss.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 10, 200])
@pytest.mark.parametrize("size", [1, 4])
def test_instance_variant_trains_its_module_at_any_number_of_classes_and_in_a_batch_of_one(num_classes, size):
    distiller = tiny_distiller("CTKD", "CTKD.VARIANT", "instance", num_classes=num_classes)
    module = distiller.temperature
    assert module.conv1.weight.shape[1] == 2 * min(100, num_classes)
    torch.nn.init.normal_(module.conv2.weight)  # from 0 the first layer has no gradient in the first step
    distiller(**(tiny_batch(num_classes, size) | {"epoch": 10}))[1]["kd"].backward()
    still = {key for key, value in module.named_parameters() if not value.grad.any()}
    assert still <= {"conv1.bias"}  # batch norm takes it away again
    assert distiller.extra_parameters() == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("variant, smoothing", [("global", 0.0), ("instance", INSTANCE_SMOOTHING)])
@pytest.mark.parametrize("size", [1, 4])
def test_the_variant_and_not_the_size_of_the_batch_decides_on_smoothing(variant, smoothing, size):
    logits = torch.randn(2, size, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distiller = distiller_of("CTKD", *map(Fixed, logits), "CTKD.VARIANT", variant).double()
    if variant == "global":
        torch.nn.init.zeros_(distiller.temperature.theta)  # 1 + 20 / 2, where the instance network starts
    losses = distiller(**tiny_batch(100, size))[1]
    expected = 0.9 * ctkd_loss(*logits, torch.full((size,), 11.0), smoothing).mean()
    torch.testing.assert_close(losses["kd"].detach(), expected, rtol=1e-9, atol=0)


def test_with_standardization_the_instance_network_sees_the_standardized_logits():
    student, teacher = (Fixed(torch.randn(4, 10, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    distiller = distiller_of("CTKD", student, teacher, "CTKD.VARIANT", "instance", "DISTILLER.LS", True)
    torch.nn.init.normal_(distiller.temperature.conv2.weight)
    seen = []
    distiller.temperature.register_forward_pre_hook(lambda module, logits: seen.extend(logits))
    distiller(**tiny_batch())
    torch.testing.assert_close(torch.stack(seen).std(dim=2), torch.ones(2, 4))


def test_theta_is_in_the_state_and_in_the_optimisers_parameters():
    distiller = tiny_distiller("CTKD")
    assert "temperature.theta" in distiller.state_dict() and distiller.extra_parameters() == 1
    assert any(parameter is distiller.temperature.theta for parameter in distiller.learnable_parameters())


def test_theta_ascends_the_loss_when_the_factor_is_minus_one():
    distiller = tiny_distiller("CTKD")
    _, losses = distiller(**(tiny_batch() | {"epoch": 10}))
    losses["kd"].backward()
    theta, step = distiller.temperature.theta, 0.01 * distiller.temperature.theta.grad.sign()
    with torch.no_grad():
        theta -= step
    assert distiller(**(tiny_batch() | {"epoch": 10}))[1]["kd"] > losses["kd"]


@pytest.mark.parametrize(
    "key, value", [("VARIANT", "globl"), ("LAMBDA_LOOPS", 0), ("T_START", 0.0), ("T_END", -2.0)]
)
def test_a_wrong_setting_is_one_line_that_names_the_key(key, value):
    with pytest.raises(UserError, match="CTKD.(VARIANT|LAMBDA_LOOPS|T_START|T_END): expected"):
        load_cfg(None, ["DISTILLER.TYPE", "CTKD", f"CTKD.{key}", value])


def test_there_is_no_released_weighting():
    with pytest.raises(UserError, match="EA.COMPAT"):
        tiny_distiller("EA-CTKD", "EA.COMPAT", "release")
