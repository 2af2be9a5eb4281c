"""ReviewKD: context loss and training step of the reference, shapes from the networks, and refused inputs."""

import logging

import pytest
import torch

from mdistiller.distillers.reviewkd import ABF, hcl_loss
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.distillers.feature_support import PRECISIONS, TOLERANCE, fill, fixed_networks
from tests.distillers.support import distiller_of, tiny_batch, tiny_distiller
from tests.golden_files import close_relative, load, tensors


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_context_loss_and_its_gradient_match_the_reference(precision, weighted):
    case = load("feature", "f_hcl.npz")
    dtype, prefix = PRECISIONS[precision], f"{precision}__{'ea_hcl' if weighted else 'hcl'}"
    loss_tolerance, gradient_tolerance = TOLERANCE[precision]
    student = [feat.requires_grad_() for feat in tensors(case, *(f"fs{level}" for level in range(5)), dtype=dtype)]
    teacher = tensors(case, *(f"ft{level}" for level in range(5)), dtype=dtype)
    per_sample = hcl_loss(student, teacher)
    assert per_sample.dtype == dtype
    close_relative(per_sample, case["per_sample"], loss_tolerance, "per sample")
    loss = (per_sample * tensors(case, "w", dtype=dtype)[0] if weighted else per_sample).mean()
    close_relative(loss, case[prefix], loss_tolerance, prefix)
    for level, gradient in enumerate(torch.autograd.grad(loss, student)):
        close_relative(gradient, case[f"{prefix}_grad_fs{level}"], gradient_tolerance, f"gradient of level {level}")
    levels = [hcl_loss([student[level]], [teacher[level]]).mean().item() for level in range(5)]
    close_relative(levels, case[f"{precision}__hcl_level"], loss_tolerance, "levels")


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([[4.0]], 16.0),
        ([[1.0, 3.0], [0.0, 0.0]], (2.5 + 0.5 * 1.0) / 1.5),  # mean square 10 / 4, mean 1
        ([[1.0] * 3] * 3, 1.0),  # a constant difference is the same at every scale, whatever the coefficients
    ],
)
def test_context_loss_by_hand(rows, expected):
    student = torch.tensor([[rows], [torch.zeros_like(torch.tensor(rows)).tolist()]])
    loss = hcl_loss([student], [torch.zeros_like(student)])
    torch.testing.assert_close(loss, torch.tensor([expected, 0.0]))


@pytest.mark.parametrize(
    "file, name, prefix",
    [
        ("d_reviewkd.npz", "REVIEWKD", "post_e25__f64"),
        ("d_reviewkd.npz", "REVIEWKD", "post_e25__f32"),
        ("d_reviewkd.npz", "REVIEWKD", "post_e3__f64"),
        ("d_reviewkd.npz", "REVIEWKD", "pre_e20__f64"),
        ("d_ea_reviewkd.npz", "EA-REVIEWKD", "post_e25__f64"),
        ("d_ea_reviewkd.npz", "EA-REVIEWKD", "post_e25__f32"),
        ("d_ea_reviewkd.npz", "EA-REVIEWKD", "pre_e7__f64"),
    ],
)
def test_training_step_matches_the_reference(file, name, prefix):
    case, (tap, epoch) = load("feature", file), prefix.split("__")[0].split("_e")
    precision = prefix.split("__")[1]
    loss_tolerance, gradient_tolerance = TOLERANCE[precision]
    student, teacher, leaves, target = fixed_networks(PRECISIONS[precision])
    opts = ["REVIEWKD.REVIEWKD_WEIGHT", 5.0, "REVIEWKD.STU_PREACT", tap == "pre", "EA.COMPAT", "release"]
    distiller = distiller_of(name, student, teacher, *opts).to(PRECISIONS[precision])
    fill(distiller.abfs, case, "abfs")
    _, losses = distiller(image=torch.zeros(4, 3, 8, 8), target=target, epoch=int(epoch))
    close_relative(losses["ce"], case[f"{prefix}__loss_ce"], loss_tolerance, "ce")
    close_relative(losses["review"], case[f"{prefix}__loss_kd"], loss_tolerance, "review")
    if distiller.weighted:
        close_relative(distiller.monitor["weight"], case[f"{precision}__w"], loss_tolerance, "weight")
    losses["review"].backward()
    gradients = {f"grad_{leaf}": tensor.grad for leaf, tensor in leaves.items() if tensor.grad is not None}
    if tap == "post" and epoch == "25":
        gradients |= {f"gradparam_abfs.{key}": weight.grad for key, weight in distiller.abfs.named_parameters()}
    expected = {key.removeprefix(f"{prefix}__") for key in case if key.startswith(f"{prefix}__grad")}
    assert gradients.keys() == expected
    for key, gradient in gradients.items():
        close_relative(gradient, case[f"{prefix}__{key}"], gradient_tolerance, key)


@pytest.mark.parametrize("epoch, factor", [(1, 0.05), (10, 0.5), (20, 1.0), (240, 1.0)])
def test_the_loss_grows_over_20_epochs_from_the_first_on(epoch, factor):
    distiller = tiny_distiller("REVIEWKD")
    full = distiller(**tiny_batch() | {"epoch": 20})[1]["review"]
    torch.testing.assert_close(distiller(**tiny_batch() | {"epoch": epoch})[1]["review"], factor * full)


@pytest.mark.parametrize(
    "teacher, student, expected",
    [("resnet32x4", "resnet8x4", 1808774), ("wrn_40_2", "wrn_16_2", 453830), ("resnet56", "resnet20", 114278)],
)
def test_extra_parameters(teacher, student, expected):
    distiller = tiny_distiller("REVIEWKD", num_classes=100, student=student, teacher=teacher)
    assert distiller.extra_parameters() == expected


def test_the_deepest_module_does_not_fuse_and_the_others_resize_to_the_teacher():
    deepest, shallower = ABF(6, 4, 7, fuse=False), ABF(5, 4, 8, fuse=True)
    assert not any(key.startswith("att_conv") for key in deepest.state_dict())
    result, fused = deepest(torch.randn(2, 6, 1, 1), torch.Size([1, 1]))
    assert result.shape == (2, 7, 1, 1) and fused.shape == (2, 4, 1, 1)
    result, fused = shallower(torch.randn(2, 5, 3, 3), torch.Size([6, 6]), fused)
    assert result.shape == (2, 8, 6, 6) and fused.shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    "teacher, student, size, num_classes",
    [
        ("resnet14", "MobileNetV2", 64, 200),
        ("vgg8", "resnet8", 32, 2),  # five levels and four: paired from the deepest, the student's stem left out
        ("resnet8", "vgg8", 32, 2),
        ("wrn_16_2", "ShuffleV2", 64, 200),
    ],
)
def test_shapes_come_from_the_networks_whatever_the_image_size(teacher, student, size, num_classes):
    info = {"num_classes": num_classes, "image_size": size}
    networks = build_model(student, num_classes), build_model(teacher, num_classes)
    distiller = distiller_of("REVIEWKD", *networks, data_info=info)
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    _, losses = distiller(image=image, target=torch.tensor([0, 1]), epoch=1)
    sum(losses.values()).backward()
    assert torch.isfinite(losses["review"])
    assert all(torch.isfinite(parameter.grad).all() for parameter in distiller.abfs.parameters())


def test_settings_that_contradict_the_networks_are_reported_but_defaults_are_not(caplog):
    with caplog.at_level(logging.WARNING):
        tiny_distiller("REVIEWKD")  # whose channels are not mdistiller's defaults
        assert not caplog.records
        tiny_distiller("REVIEWKD", "REVIEWKD.IN_CHANNELS", [16, 32, 64, 64], "REVIEWKD.OUT_SHAPES", [1, 4, 8, 16])
    (record,) = caplog.records
    assert record.getMessage() == (
        "REVIEWKD.OUT_SHAPES: [1, 4, 8, 16] is not used; it is [1, 8, 16, 32] for these networks"
    )


@pytest.mark.parametrize(
    "student, teacher, opts, problem",
    [
        ("resnet8", "MobileNetV2", [], "preact_feats, which the teacher"),
        ("MobileNetV2", "resnet8", ["REVIEWKD.STU_PREACT", True], "STU_PREACT needs preact_feats, which the student"),
    ],
)
def test_networks_without_preactivations_are_refused_in_one_line(student, teacher, opts, problem):
    with pytest.raises(UserError, match=f"REVIEWKD.*{problem}") as error:
        tiny_distiller("REVIEWKD", *opts, student=student, teacher=teacher)
    assert "\n" not in str(error.value)


def test_a_batch_of_one_which_has_no_variance_at_the_pooled_level():
    distiller = tiny_distiller("EA-REVIEWKD").train()
    _, losses = distiller(**tiny_batch(size=1))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
