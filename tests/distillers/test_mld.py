"""Multi-level logit distillation: goldens of both views, masks, and both ways of masking."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS
from mdistiller.distillers.kd import kd_loss
from mdistiller.errors import UserError
from mdistiller.losses.mld import confidence_masks, mld_losses
from mdistiller.models import Output
from tests.distillers.support import distiller_of, tiny_batch, tiny_distiller
from tests.golden_files import case_name, close, load, logit_cases, tensors, tolerance_of

PRECISIONS = [torch.float64, torch.float32]
CASES = logit_cases("mld", "ls_mld", "ea_mld", "ea_mld_ls")
LOGITS = ("student_weak", "student_strong", "teacher_weak", "teacher_strong")


class TwoViews(nn.Module):
    """Its output is the weak logits for an image of zeros and the strong ones for an image of ones."""

    def __init__(self, weak, strong):
        super().__init__()
        self.logits = nn.ParameterList([weak.clone(), strong.clone()])

    def forward(self, image):
        return Output(self.logits[int(image.flatten()[0])], {})


def two_view_step(entry, case, dtype, compat="paper"):
    """The distiller after one backward of all losses on the logits of a case, and its losses."""
    logits, weighted = tensors(case, *LOGITS, dtype=dtype), entry["method"].startswith("ea_")
    opts = ["KD.TEMPERATURE", case["base_temperature"], "KD.LOSS.CE_WEIGHT", case["ce_weight"],
            "KD.LOSS.KD_WEIGHT", case["kd_weight"], "DISTILLER.LS", case["logit_standardization"],
            "EA.COMPAT", compat]
    if weighted and compat == "paper":
        opts += ["EA.TEMPERATURE", case["T_prime"], "EA.UPPER_BOUND", case["H_ub"]]
    networks = TwoViews(*logits[:2]), TwoViews(*logits[2:])
    distiller = distiller_of("EA-MLD" if weighted else "MLD", *networks, *opts).to(dtype)
    (target,) = tensors(case, "target")
    images = torch.zeros(len(target), 3, 2, 2), torch.ones(len(target), 3, 2, 2)
    _, losses = distiller(image=images[0], image_strong=images[1], target=target)
    sum(losses.values()).backward()
    return distiller, losses


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", CASES, ids=case_name)
def test_masks_and_unweighted_terms(entry, dtype):
    case, tolerance = load("logit", entry["file"]), tolerance_of(entry, dtype)
    logits = tensors(case, *LOGITS, dtype=dtype)
    samples, classes = confidence_masks(logits[2])
    assert samples.tolist() == case["mask_sample"].tolist()
    assert classes.tolist() == case["mask_class"].tolist()
    losses = mld_losses(*logits, case["base_temperature"], case["logit_standardization"])
    expected = {"weak": "kd_per_sample_weak_f64", "strong": "kd_per_sample_strong_f64",
                "cc": "loss_cc_f64", "bc": "loss_bc_f64"}
    assert losses.keys() == expected.keys()
    for name, golden in expected.items():
        close(case["kd_weight"] * losses[name], case[golden], tolerance, name)


def check_step(entry, case, dtype, **options):
    distiller, losses = two_view_step(entry, case, dtype, **options)
    tolerance = tolerance_of(entry, dtype)
    losses = {name: loss.detach() for name, loss in losses.items()}
    close(losses["weak"] + losses["strong"], case["loss_kd_f64"], tolerance, "kd")
    for name in ("ce", "cc", "bc"):
        close(losses[name], case[f"loss_{name}_f64"], tolerance, name)
    close(sum(losses.values()), case["total_f64"], tolerance, "total")
    for view, logits in zip(("weak", "strong"), distiller.student.logits, strict=True):
        close(logits.grad, case[f"grad_student_{view}_f64"], tolerance, f"gradient, {view} view")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", CASES, ids=case_name)
def test_training_losses_and_gradients(entry, dtype):
    check_step(entry, load("logit", entry["file"]), dtype)


RELEASED = [entry for entry in logit_cases("ea_mld", "ea_mld_ls") if entry["behaviour"] == "release"]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", RELEASED, ids=case_name)
def test_compat_release_sets_what_the_released_code_does(entry, dtype):
    """T' 3 and the bound log 100, whatever the config and the number of classes, and raw logits even with LS."""
    check_step(entry, load("logit", entry["file"]), dtype, compat="release")


def random_logits(batch=5, classes=4, seed=0):
    return 3 * torch.randn(4, batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_per_sample_masking_selects_samples_and_classes():
    student, _, teacher, _ = logits = random_logits()
    losses = mld_losses(*logits, 4.0, masking="per_sample")
    samples, classes = confidence_masks(teacher)
    assert samples.tolist().count(True) == 3 and classes.tolist().count(True) == 2
    terms = {t: kd_loss(student, teacher, t) for t in (4, 3, 5, 2, 6)}
    torch.testing.assert_close(losses["weak"], samples * sum(terms.values()) + terms[2] + terms[6])
    cc = bc = 0.0
    for t in terms:
        p_s, p_t = (student / t).softmax(1), (teacher / t).softmax(1)
        cc = cc + sum(F.mse_loss(p_s.T[k] @ p_s, p_t.T[k] @ p_t, reduction="sum") for k in range(4) if classes[k]) / 4
        bc = bc + sum(F.mse_loss(p_s[i] @ p_s.T, p_t[i] @ p_t.T, reduction="sum") for i in range(5) if samples[i]) / 5
    torch.testing.assert_close(losses["cc"], cc)
    torch.testing.assert_close(losses["bc"], bc)
    torch.testing.assert_close(losses["strong"], mld_losses(*logits, 4.0)["strong"])


def test_both_maskings_agree_where_nothing_is_masked():
    alike = random_logits(batch=1, classes=2).round().expand(4, 3, 2)
    alike = torch.cat([alike, alike.flip(2)], dim=1)  # all samples and both classes are equally confident
    released, per_sample = (mld_losses(*alike, 4.0, masking=masking) for masking in ("released", "per_sample"))
    for name in released:
        torch.testing.assert_close(released[name], per_sample[name])


@pytest.mark.parametrize(
    "confidences, expected",  # of one of two classes, above 1/2
    [
        ([0.6, 0.9], [True, False]),
        ([0.9, 0.6, 0.8], [False, True, True]),  # the median itself is selected
        ([0.9, 0.6, 0.8, 0.7], [False, True, False, True]),  # the midpoint of 0.7 and 0.8
        ([0.8, 0.8, 0.8], [True, True, True]),
        ([0.7], [True]),
    ],
)
def test_half_of_the_samples_and_the_ties_are_selected(confidences, expected):
    p = torch.tensor(confidences)
    assert confidence_masks(torch.stack([p, 1 - p], dim=1).log())[0].tolist() == expected


def test_a_temperature_met_twice_counts_twice():
    student, strong, teacher, teacher_strong = logits = random_logits()
    once, twice = (mld_losses(*logits, t, masking="per_sample") for t in (4.0, 2.0))
    samples, _ = confidence_masks(teacher)
    change = kd_loss(student, teacher, 2.0) - kd_loss(student, teacher, 4.0)
    torch.testing.assert_close(twice["weak"], once["weak"] + samples * change)
    change = kd_loss(strong, teacher_strong, 2.0) - kd_loss(strong, teacher_strong, 4.0)
    torch.testing.assert_close(twice["strong"], once["strong"] + change)


def test_the_teacher_gets_no_gradient():
    student, strong, teacher, teacher_strong = (z.clone().requires_grad_() for z in random_logits())
    losses = mld_losses(student, strong, teacher, teacher_strong, 4.0)
    sum(loss.sum() for loss in losses.values()).backward()
    assert teacher.grad is teacher_strong.grad is None and student.grad is not None and strong.grad is not None


@pytest.mark.parametrize("masking", ["released", "per_sample"])
def test_an_empty_batch_has_no_losses_of_samples(masking):
    losses = mld_losses(*torch.zeros(4, 0, 3), 4.0, masking=masking)
    assert losses["weak"].shape == losses["strong"].shape == (0,) and losses["cc"] == 0


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_extreme_logits_and_two_classes_are_finite(scale, standardize):
    logits = (scale * random_logits(classes=2)).float().requires_grad_()
    losses = mld_losses(*logits, 1.0, standardize)
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values()) and logits.grad.isfinite().all()


def test_its_names_in_other_code_bases_mean_the_same_class():
    assert DISTILLERS["MLKD"] is DISTILLERS["kd_ours"] is DISTILLERS["MLD"]
    assert DISTILLERS["EA-KD_ours"] is DISTILLERS["EA-MLD"]


def test_masking_is_a_setting_and_only_changes_what_is_masked():
    released, per_sample = (tiny_distiller("MLD", "MLD.MASKING", masking)(**tiny_batch())[1]
                            for masking in ("released", "per_sample"))
    assert [name for name in released if not torch.equal(released[name], per_sample[name])] == ["weak", "cc", "bc"]


def test_an_unknown_masking_is_refused():
    with pytest.raises(UserError, match="MLD.MASKING: expected one of released, per_sample; found 'none'"):
        load_cfg(None, ["DISTILLER.TYPE", "MLD", "MLD.MASKING", "none"])
    with pytest.raises(ValueError, match="unknown masking 'none'"):
        mld_losses(*random_logits(), 4.0, masking="none")
