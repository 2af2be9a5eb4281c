"""Sample weights of language models: numbers of an independent implementation, and all kinds of weights."""

import math

import pytest
import torch

from mdistiller.distillers.ea import Weighting, ea_weight
from mdistiller.distillers.reduce import weighted_mean
from mdistiller.functional import entropy, sequence_means
from mdistiller.models.language import Tokens
from tests.language.goldens import ARRAYS, CASES, LOSSES, Case
from tests.language.support import config, distiller_of, step

LEVELS = {"token": "token", "sequence": "sequence", "mean_weight": "mean_weight"}


def weight_of(case, temperature, level="sequence", kind="ea"):
    return ea_weight(case.student, case.teacher, temperature, kind, group=case.group, level=level)


@pytest.mark.parametrize("temperature", [1, 2, 3])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_weights_and_weighted_divergences_equal_the_goldens(case, level, temperature):
    case = Case(case)
    weight = weight_of(case, temperature, level)
    torch.testing.assert_close(weight, case.value(f"w_{level}@Tp{temperature}"), rtol=1e-9, atol=1e-12)
    loss = weighted_mean(LOSSES["forward_kl"](case.student, case.teacher, 2.0), weight, "kd")
    expected = case.value(f"ea_{level}_forward_kl@T2_Tp{temperature}_mean")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert (weight >= 0).all() and (weight <= math.log(case.student.shape[1]) + 1e-12).all()


@pytest.mark.parametrize("case", CASES)
def test_the_level_of_prompt_and_response_averages_over_all_attended_tokens(case):
    name, case = case, Case(case)
    logits = [torch.from_numpy(ARRAYS[f"{name}/{role}"]).double()[case.attended] for role in ("student", "teacher")]
    own, rows = case.supervised[case.attended], case.attended.nonzero()[:, 0]
    weighting = Weighting("ea", 2.0, level="prompt_and_response")
    entropies = [weighting.entropy(z) for z in logits]
    around = *(values[~own] for values in entropies), rows[~own]
    weight = weighting.weights(*(values[own] for values in entropies), logits[0].shape[1], rows[own], around)
    torch.testing.assert_close(weight, case.value("w_attended@Tp2"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_run_at_the_level_of_prompt_and_response_weighs_by_every_token_that_is_no_padding(chunk):
    cfg = config("EA-FKL", "EA.LEVEL", "prompt_and_response", "LM.LOSS_CHUNK", chunk)
    distiller, data = distiller_of(cfg)
    batch = next(data.train_batches(1))
    distiller(**batch)
    every = Tokens(batch["ids"], batch["mask"], batch["places"], torch.arange(batch["ids"].numel()))
    with torch.no_grad():
        student, teacher = (entropy(network.head(network(every)), cfg.EA.TEMPERATURE).view(batch["ids"].shape)
                            for network in (distiller.student, distiller.teacher))
    expected = []
    for row in batch["group"].tolist():
        read = batch["mask"][row] > 0
        h_student, h_teacher = student[row, read].mean(), teacher[row, read].mean()
        expected.append(h_teacher / 2 * (1 + h_student / math.log(distiller.student.vocabulary)))
    torch.testing.assert_close(distiller.monitor["weight"], torch.stack(expected))


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_of_the_weighted_divergence_treat_weights_as_constants(level):
    case = Case("small")
    student = case.student.clone().requires_grad_()
    weight = ea_weight(student, case.teacher, 2.0, group=case.group, level=level)
    assert not weight.requires_grad
    weighted_mean(LOSSES["forward_kl"](student, case.teacher, 2.0), weight, "kd").backward()
    torch.testing.assert_close(student.grad, case.value(f"ea_{level}_forward_kl_grad@T2_Tp2"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["reverse_kl", "js_divergence", "skewed_forward_kl", "skewed_reverse_kl"])
def test_every_divergence_is_weighted_in_the_same_way(name):
    case = Case("small")
    loss = weighted_mean(LOSSES[name](case.student, case.teacher, 2.0), weight_of(case, 2), "kd")
    torch.testing.assert_close(loss, case.value(f"ea_sequence_{name}@T2_Tp2_mean"), rtol=1e-9, atol=0)


def test_other_kinds_and_the_two_controls_equal_the_goldens_and_multiply_back_to_ea():
    case = Case("small")
    loss = LOSSES["forward_kl"](case.student, case.teacher, 2.0)
    for kind in ("base", "interact"):
        torch.testing.assert_close(weight_of(case, 2, kind=kind), case.value(f"w_sequence_{kind}@Tp2"))
    constant, normalized = weight_of(case, 2, kind="constant"), weight_of(case, 2, kind="normalized")
    for kind, weight in (("constant", constant), ("normalized", normalized)):
        expected = case.value(f"ea_{kind}_forward_kl@T2_Tp2_mean")
        torch.testing.assert_close((weight * loss).mean(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(constant * normalized, weight_of(case, 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(constant[0], case.value("w_constant@Tp2"))


def test_the_mean_over_sequences_of_token_means_leaves_out_sequences_without_tokens():
    case = Case("small")
    # the last sequence has no token
    importance = sequence_means(case.group, int(case.group.max()) + 2, torch.float64)
    loss = LOSSES["forward_kl"](case.student, case.teacher, 2.0)
    torch.testing.assert_close((loss * importance).mean(), case.value("forward_kl@T2_sequence_mean"), rtol=1e-9, atol=0)
    weighted = (loss * importance * weight_of(case, 2)).mean()
    torch.testing.assert_close(weighted, case.value("ea_sequence_forward_kl@T2_Tp2_sequence_mean"), rtol=1e-9, atol=0)


def test_without_weighting_ea_is_the_plain_method_bit_for_bit():
    plain, _, _ = step(config("FKL"))
    none, _, _ = step(config("EA-FKL", "EA.KIND", "none"))
    assert {name: loss.item().hex() for name, loss in plain.items()} == {
        name: loss.item().hex() for name, loss in none.items()
    }


@pytest.mark.parametrize("chunk", [0, 5])
def test_weights_of_a_run_never_touch_cross_entropy_and_follow_the_level(chunk):
    plain, _, _ = step(config("FKL"))
    found = {}
    for level in ("token", "sequence", "mean_weight", "prompt_and_response"):
        losses, _, distiller = step(config("EA-FKL", "EA.LEVEL", level, "LM.LOSS_CHUNK", chunk))
        torch.testing.assert_close(losses["ce"], plain["ce"], rtol=1e-6, atol=0)
        found[level] = losses["kd"].item()
        spread = distiller.monitor["weight"].std()
        assert spread > 0 and torch.isfinite(spread)
    assert len(set(found.values())) == 4
