"""FitNet, AT, NST, PKT, KDSVD, OFD, RKD, VID and SP against the reference: functions, then whole training steps."""

from itertools import product

import pytest
import torch

from mdistiller.distillers.at import at_loss
from mdistiller.distillers.fitnet import ConvRegressor, fitnet_loss
from mdistiller.distillers.nst import nst_loss
from mdistiller.distillers.ofd import margin_from_bn, ofd_loss
from mdistiller.distillers.pkt import pkt_loss
from mdistiller.distillers.rkd import rkd_loss
from mdistiller.distillers.sp import sp_loss
from mdistiller.distillers.vid import vid_loss
from mdistiller.losses import kdsvd
from tests.distillers.feature_support import LOOSE, PRECISIONS, TOLERANCE, check_step
from tests.golden_files import FEATURE, close_relative, load, tensors

precisions = pytest.mark.parametrize("precision", PRECISIONS)
KDSVD_TOLERANCE = FEATURE["tolerance"]["f_kdsvd loss"], FEATURE["tolerance"]["f_kdsvd gradients"]


def unequal_maps(dtype):
    case = load("feature", "f_at_nst.npz")
    student = [feat.requires_grad_() for feat in tensors(case, "fs0", "fs1", "fs2", dtype=dtype)]
    return case, student, tensors(case, "ft0", "ft1", "ft2", dtype=dtype)


@precisions
@pytest.mark.parametrize(
    "name, loss_of",
    [("at", at_loss), ("at_p4", lambda student, teacher: at_loss(student, teacher, p=4)), ("nst", nst_loss)],
)
def test_maps_of_unequal_sizes(name, loss_of, precision):
    case, student, teacher = unequal_maps(PRECISIONS[precision])
    loss_tolerance, gradient_tolerance = TOLERANCE[precision]
    per_sample = loss_of(student, teacher)
    assert per_sample.dtype == PRECISIONS[precision]
    close_relative(per_sample, case[f"f64__{name}__per_sample"], loss_tolerance, "per sample")
    close_relative(per_sample.mean(), case[f"{precision}__{name}__loss"], loss_tolerance, "loss")
    stages = [loss_of([ours], [theirs]).mean().item() for ours, theirs in zip(student, teacher, strict=True)]
    close_relative(stages, case[f"{precision}__{name}__stage"], loss_tolerance, "stages")
    for stage, gradient in enumerate(torch.autograd.grad(per_sample.mean(), student)):
        close_relative(gradient, case[f"{precision}__{name}__grad_fs{stage}"], gradient_tolerance, f"stage {stage}")


RELATIONS = {
    "pkt": pkt_loss,
    "rkd": rkd_loss,
    "rkd_dist": lambda student, teacher: rkd_loss(student, teacher, distance_weight=1.0, angle_weight=0.0),
    "rkd_angle": lambda student, teacher: rkd_loss(student, teacher, distance_weight=0.0, angle_weight=1.0),
    "rkd_squared": lambda student, teacher: rkd_loss(student, teacher, squared=True),
    "sp": sp_loss,
}


@precisions
@pytest.mark.parametrize("name", RELATIONS)
def test_relations_within_the_batch(name, precision):
    case = load("feature", "f_relational.npz")
    names = ("fs_map", "ft_map") if name == "sp" else ("fs", "ft")
    student, teacher = tensors(case, *names, dtype=PRECISIONS[precision])
    before = student.clone()
    rows = RELATIONS[name](student.requires_grad_(), teacher)
    assert rows.dtype == PRECISIONS[precision] and rows.shape == (8,)
    loss_tolerance, gradient_tolerance = TOLERANCE[precision]
    if f"f64__{name}__rows" in case:
        close_relative(rows, case[f"f64__{name}__rows"], loss_tolerance, "rows")
    close_relative(rows.mean(), case[f"{precision}__{name}__loss"], loss_tolerance, "loss")
    (gradient,) = torch.autograd.grad(rows.mean(), student)
    close_relative(gradient, case[f"{precision}__{name}__grad"], gradient_tolerance, "gradient")
    assert torch.equal(student, before)


@precisions
@pytest.mark.parametrize("shape_case", ["same", "half", "double", "shrink"])
def test_fitnet_regressor(shape_case, precision):
    case = load("feature", "f_convreg.npz")
    dtype, (loss_tolerance, gradient_tolerance) = PRECISIONS[precision], TOLERANCE[precision]
    student, teacher = tensors(case, f"{shape_case}__fs", f"{shape_case}__ft", dtype=dtype)
    regressor = ConvRegressor(tuple(student.shape), tuple(teacher.shape)).to(dtype)
    stored = sorted(key for key in case if key.startswith(f"{shape_case}__param_"))
    assert [key.split(".", 1)[1] for key in stored] == list(regressor.state_dict())
    regressor.load_state_dict({key.split(".", 1)[1]: torch.as_tensor(case[key]) for key in stored})
    prefix = f"{shape_case}__{precision}__"
    hint = regressor(student.requires_grad_())
    per_sample = fitnet_loss(hint, teacher)
    close_relative(hint, case[f"{prefix}out"], loss_tolerance, "regressed")
    close_relative(per_sample, case[f"{prefix}per_sample"], loss_tolerance, "per sample")
    close_relative(per_sample.mean(), case[f"{prefix}mse"], loss_tolerance, "mean square")
    per_sample.mean().backward()
    close_relative(student.grad, case[f"{prefix}grad_fs"], gradient_tolerance, "gradient")
    for key in ("conv.weight", "bn.weight", "bn.bias"):
        close_relative(
            regressor.get_parameter(key).grad, case[f"{prefix}gradparam_{key}"], gradient_tolerance, key
        )


def singular_levels(case, student, signs=None):
    """By stage: the student's vectors, and the stored ones of the teacher (times `signs` (B, stages))."""
    levels = []
    for stage, feat in enumerate(student):
        vectors, values = tensors(case, f"teacher_v{stage}", f"teacher_s{stage}", dtype=torch.float32)
        if signs is not None:
            vectors = vectors * signs[:, stage, None, None]
        levels.append((kdsvd.right_singular_vectors(feat, 1 + kdsvd.SPARE)[1], vectors, values))
    return levels


def test_kdsvd_with_the_references_signs_of_the_teachers_vectors():
    case = load("feature", "f_kdsvd.npz")
    student = [feat.requires_grad_() for feat in tensors(case, "fs0", "fs1", "fs2", dtype=torch.float32)]
    teacher = tensors(case, "ft0", "ft1", "ft2", dtype=torch.float32)
    for stage in range(3):
        for feats, name, count in ((student, "student_v", 4), (teacher, "teacher_v", 1)):
            _, vectors = kdsvd.right_singular_vectors(feats[stage], count)
            close_relative(vectors.abs(), abs(case[f"{name}{stage}"]), 1e-4, f"{name}{stage}")
    loss = kdsvd.relation_loss(singular_levels(case, student))
    close_relative(loss, case["per_sample"], KDSVD_TOLERANCE[0], "per sample")
    close_relative(loss.mean(), case["f32__loss"], KDSVD_TOLERANCE[0], "loss")
    for stage, gradient in enumerate(torch.autograd.grad(loss.mean(), student)):
        close_relative(gradient, case[f"f32__grad_fs{stage}"], KDSVD_TOLERANCE[1], f"stage {stage}")


def test_kdsvd_is_the_reference_for_some_choice_of_signs():
    """Whatever signs this machine's library gives the teacher's vectors, and for each sample on its own."""
    case = load("feature", "f_kdsvd.npz")
    student = tensors(case, "fs0", "fs1", "fs2", dtype=torch.float32)
    teacher = tensors(case, "ft0", "ft1", "ft2", dtype=torch.float32)
    loss = kdsvd.kdsvd_loss(student, teacher)
    choices = torch.stack([
        kdsvd.relation_loss(singular_levels(case, student, torch.tensor(signs).expand(3, 3)))
        for signs in product((1.0, -1.0), repeat=3)
    ])
    assert (choices - loss).abs().min(dim=0).values.max() < 1e-4
    assert choices.std(dim=0).min() > 1e-3  # the choice matters


@precisions
@pytest.mark.parametrize(
    "name, file, per_sample",
    [
        ("AT", "d_at.npz", lambda s, t: at_loss(s["feats"][1:], t["feats"][1:])),
        ("NST", "d_nst.npz", lambda s, t: nst_loss(s["feats"][1:], t["feats"][1:])),
        ("PKT", "d_pkt.npz", None),
        ("RKD", "d_rkd.npz", None),
        ("SP", "d_sp.npz", None),
    ],
)
def test_steps_of_methods_without_modules(name, file, per_sample, precision):
    distiller, case = check_step(name, file, precision)
    assert distiller.extra_parameters() == 0
    if per_sample:
        student, teacher = distiller.student.features, distiller.teacher.features
        close_relative(per_sample(student, teacher), case["per_sample_unweighted"], TOLERANCE[precision][0])


@precisions
def test_step_of_fitnet(precision):
    distiller, case = check_step("FITNET", "d_fitnet.npz", precision, modules=["conv_reg"])
    assert list(distiller.conv_reg.state_dict()) == [
        key.split(".", 2)[2] for key in sorted(case) if key.startswith("param_")
    ]


@precisions
@pytest.mark.parametrize("train_scale", [True, False])
def test_step_of_vid(train_scale, precision):
    tolerances = (LOOSE, LOOSE) if precision == "f64" else None
    distiller, case = check_step(
        "VID", "d_vid.npz", precision, "VID.TRAIN_SCALE", train_scale, modules=["regressors"], tolerances=tolerances
    )
    for stage, log_scale in enumerate(distiller.log_scales):
        assert log_scale.requires_grad == train_scale
        if train_scale:
            close_relative(log_scale.grad, case[f"f64__grad_log_scale{stage}"], TOLERANCE["f32"][1], f"scale {stage}")
        else:
            assert log_scale.grad is None
    student, teacher = distiller.student.features["feats"][1:], distiller.teacher.features["feats"][1:]
    levels = zip(distiller.regressors, student, teacher, distiller.log_scales, strict=True)
    loss = sum(vid_loss(regressor(ours), theirs, scale) for regressor, ours, theirs, scale in levels)
    close_relative(loss, case["per_sample_unweighted"], tolerances[0] if tolerances else TOLERANCE["f32"][0])


@precisions
def test_step_of_ofd(precision):
    distiller, case = check_step("OFD", "d_ofd.npz", precision, modules=["connectors"])
    margins = [distiller.get_buffer(f"margin{level}") for level in range(3)]
    for level, margin in enumerate(margins):
        close_relative(margin, case[f"margin{level + 1}"], 1e-6, f"margin {level}")
        norm = distiller.teacher.norms[level].float()
        assert torch.equal(margin_from_bn(norm.weight, norm.bias), margin.float())
    student, teacher = distiller.student.features["preact_feats"][1:], distiller.teacher.features["preact_feats"][1:]
    connected = [connect(feat) for connect, feat in zip(distiller.connectors, student, strict=True)]
    tolerance = TOLERANCE[precision][0]
    close_relative(ofd_loss(connected, teacher, margins), case["per_sample_unweighted"], tolerance, "per sample")
    levels = [ofd_loss(*level).mean().item() for level in zip(connected, teacher, margins, strict=True)]
    close_relative(levels, case["stage_unweighted"], tolerance, "levels")
