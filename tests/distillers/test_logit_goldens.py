"""Logit methods against the reference implementations: per-sample values, gradients, and whole training losses."""

import pytest
import torch

from mdistiller.distillers.dkd import dkd_loss
from mdistiller.distillers.kd import kd_loss
from mdistiller.distillers.ls import standardize
from tests.distillers.support import fixed_step
from tests.golden_files import case_name, close, load, logit_cases, tensors, tolerance_of

PRECISIONS = [torch.float64, torch.float32]
HOSTS = logit_cases("kd", "ls_kd", "dkd", "ls_dkd", "ea_kd", "ea_dkd", "ea_dkd_ls")


def per_sample(case, student, teacher, target):
    if case.get("logit_standardization"):
        student, teacher = standardize(student), standardize(teacher)
    if "alpha" in case:
        return dkd_loss(student, teacher, target, case["alpha"], case["beta"], case["temperature"])
    return kd_loss(student, teacher, case["temperature"])


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", HOSTS, ids=case_name)
def test_per_sample_losses(entry, dtype):
    case = load("logit", entry["file"])
    student, teacher, target = tensors(case, "student_logits", "teacher_logits", "target", dtype=dtype)
    loss = per_sample(case, student, teacher, target)
    close(loss, case["per_sample_f64"], tolerance_of(entry, dtype))


def overrides(entry, case):
    """The config that the case was made with."""
    dkd = "alpha" in case
    opts = ["DISTILLER.LS", case.get("logit_standardization", False), "EA.COMPAT", "paper"]
    if entry["method"].startswith("ea_"):
        standardized = entry["method"] == "ea_dkd_ls" and entry["behaviour"] == "release"
        opts += ["EA.TEMPERATURE", case["T_prime"], "EA.UPPER_BOUND", case["H_ub"]]
        opts += ["EA.LOGITS", "standardized" if standardized else "raw"]
    if dkd:
        return opts + ["DKD.ALPHA", case["alpha"], "DKD.BETA", case["beta"], "DKD.T", case["temperature"],
                       "DKD.CE_WEIGHT", case["ce_weight"], "DKD.WARMUP", case["warmup"]]
    return opts + ["KD.TEMPERATURE", case["temperature"], "KD.LOSS.CE_WEIGHT", case["ce_weight"],
                   "KD.LOSS.KD_WEIGHT", case["kd_weight"]]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("entry", HOSTS, ids=case_name)
def test_training_losses_and_gradients(entry, dtype):
    case = load("logit", entry["file"])
    student, teacher, target = tensors(case, "student_logits", "teacher_logits", "target", dtype=dtype)
    name = ("EA-" if entry["method"].startswith("ea_") else "") + ("DKD" if "alpha" in case else "KD")
    epoch = case.get("epoch", 1)
    losses, gradient = fixed_step(name, student, teacher, target, *overrides(entry, case), epoch=epoch)
    tolerance = tolerance_of(entry, dtype)
    close(losses["ce"], case["train_loss_ce_f64"], tolerance, "ce")
    distilled = sum(loss for key, loss in losses.items() if key != "ce")
    close(distilled, case["train_loss_kd_f64"], tolerance, "distillation loss")
    factor = min(epoch / case["warmup"], 1) if "alpha" in case else case["kd_weight"]
    close(gradient, factor * case["grad_student_f64"], tolerance, "gradient")


@pytest.mark.parametrize("method, name", [("ea_kd", "EA-KD"), ("ea_dkd", "EA-DKD"), ("ea_dkd_ls", "EA-DKD")])
def test_compat_release_sets_what_the_released_code_does(method, name):
    """T' 3, the bound 100 and (DKD with LS) standardized logits need not be set by hand."""
    for entry in logit_cases(method):
        case = load("logit", entry["file"])
        if entry["behaviour"] != "release" or case["H_ub"] != 100.0:
            continue
        student, teacher, target = tensors(case, "student_logits", "teacher_logits", "target")
        opts = overrides(entry, case)
        opts[opts.index("EA.COMPAT") + 1] = "release"
        for key, neutral in (("EA.UPPER_BOUND", None), ("EA.LOGITS", "raw")):
            opts[opts.index(key) + 1] = neutral
        losses, _ = fixed_step(name, student, teacher, target, *opts, "KD.LOSS.KD_WEIGHT", case.get("kd_weight", 1.0),
                               epoch=case.get("epoch", 1))
        distilled = sum(loss for key, loss in losses.items() if key != "ce")
        close(distilled, case["train_loss_kd_f64"], tolerance_of(entry, torch.float64), entry["file"])
