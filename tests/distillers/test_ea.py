"""Sample weights: values computed by hand, goldens, and edge cases."""

import math

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.distillers.ea import KINDS, Weighting, ea_weight, entropy
from mdistiller.errors import UserError
from tests.golden_files import case_name, close, load, logit_cases, tensors


@pytest.mark.parametrize("entry", logit_cases("ea_weight"), ids=case_name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_and_entropies_match_the_reference(entry, dtype):
    case = load("logit", entry["file"])
    student, teacher = tensors(case, "student_logits", "teacher_logits", dtype=dtype)
    tolerance = entry["tolerance"][str(dtype).removeprefix("torch.")]
    weight = ea_weight(student, teacher, case["T_prime"], upper_bound=case["H_ub"])
    close(weight, case["w_f64"], tolerance, "w")
    close(entropy(teacher, case["T_prime"]), case["H_teacher_f64"], tolerance, "H teacher")
    close(entropy(student, case["T_prime"]), case["H_student_f64"], tolerance, "H student")
    for kind in ("base", "interact"):
        if f"w_{kind}_f64" in case:
            close(ea_weight(student, teacher, case["T_prime"], kind, case["H_ub"]), case[f"w_{kind}_f64"], tolerance)


def test_two_uniform_outputs_over_100_classes_have_weight_log_100():
    logits = torch.zeros(2, 100, dtype=torch.float64)
    torch.testing.assert_close(ea_weight(logits, logits), torch.full((2,), math.log(100), dtype=torch.float64))
    weight = ea_weight(logits, logits, upper_bound=100)[0].item()
    torch.testing.assert_close(weight, math.log(10) * (1 + math.log(100) / 100), rtol=0, atol=1e-12)


def test_uniform_teacher_and_one_hot_student_have_weight_half_of_log_c():
    one_hot = torch.tensor([[1e4] + [0.0] * 99])
    weight = ea_weight(one_hot, torch.zeros(1, 100))
    torch.testing.assert_close(weight, torch.tensor([math.log(100) / 2]))


def test_a_one_hot_teacher_has_weight_exactly_zero():
    one_hot = torch.tensor([[1e4] + [0.0] * 9])
    assert ea_weight(torch.zeros(1, 10), one_hot).item() == 0.0


HALF, NONE, BOTH = math.log(2) / 2, 0.0, math.log(2)


@pytest.mark.parametrize(
    "kind, uniform_uniform, uniform_one_hot, one_hot_uniform",  # teacher_student
    [
        ("none", 1.0, 1.0, 1.0),
        ("base", BOTH, BOTH, NONE),
        ("interact", BOTH, NONE, NONE),
        ("ea", BOTH, HALF, NONE),
        ("student", BOTH, NONE, BOTH),
        ("inverted_teacher", NONE, NONE, BOTH),
        ("inverted_student", NONE, BOTH, NONE),
        ("constant", HALF, HALF, HALF),  # the mean of log 2, log(2) / 2 and 0
        ("normalized", 2.0, 1.0, NONE),  # over the mean log(2) / 2
        ("max_logit", BOTH, HALF, NONE),  # of a one-hot row 1 - 1 = 0, of a uniform one (1 - 1 / 2) 2 log 2
    ],
)
def test_every_kind_on_two_classes(kind, uniform_uniform, uniform_one_hot, one_hot_uniform):
    uniform, one_hot = [0.0, 0.0], [1e4, 0.0]
    teacher, student = torch.tensor([uniform, uniform, one_hot]), torch.tensor([uniform, one_hot, uniform])
    expected = torch.tensor([uniform_uniform, uniform_one_hot, one_hot_uniform])
    torch.testing.assert_close(ea_weight(student, teacher, kind=kind), expected)


@pytest.mark.parametrize("change, message", [
    ({"logits_student": torch.zeros(3, 2, dtype=torch.int64)},
     r"logits_student: expected a tensor of floating-point numbers; found torch.int64 \(3, 2\)"),
    ({"logits_teacher": [[0.0, 1.0]]}, "logits_teacher: expected a tensor of floating-point numbers; found list"),
    ({"logits_teacher": torch.zeros(3, 4)}, r"expected logits \(n, C\) of one shape .* found \(3, 2\) and \(3, 4\)"),
    ({"temperature": 0}, "temperature: expected a number above 0; found 0"),
    ({"temperature": "3"}, "temperature: expected a number above 0; found '3'"),
    ({"upper_bound": -1.0}, "upper_bound: expected a number above 0, or None for log C; found -1.0"),
    ({"upper_bound": "log_c"}, "upper_bound: expected a number above 0, or None for log C; found 'log_c'"),
    ({"kind": "entropy"}, "unknown kind 'entropy': expected one of none, base"),
    ({"group": torch.zeros(3)}, r"group: expected a tensor of integers \(3,\); found torch.float32 \(3,\)"),
    ({"group": torch.zeros(4, dtype=torch.int32)}, r"group: expected .* \(3,\); found torch.int32 \(4,\)"),
])
def test_what_gives_no_weights_is_named_in_one_line(change, message):
    logits = {"logits_student": torch.zeros(3, 2), "logits_teacher": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match=f"^{message}"):
        ea_weight(**logits | change)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_single_class_has_the_weight_zero(kind):
    weight = ea_weight(torch.randn(3, 1), torch.randn(3, 1), kind=kind)
    assert weight.tolist() == [float(kind == "none")] * 3


def test_every_kind_is_tested_above_or_below():
    assert len(KINDS) == 11


def test_the_max_logit_kind_reads_the_greatest_probability_alone():
    even, uneven = [[0.5, 0.25, 0.25], [0.5, 0.4, 0.1]]
    teacher, student = torch.tensor([even, uneven]).log(), torch.zeros(2, 3)
    # 1 - 1/2 over its greatest value 2/3 is 3/4 of log 3 for both rows; the student's is log 3, so that w = H^T
    weight = ea_weight(student, teacher, temperature=1.0, kind="max_logit")
    torch.testing.assert_close(weight, torch.full((2,), 0.75 * math.log(3)))
    base = ea_weight(student, teacher, temperature=1.0)
    assert base[0] > base[1]  # the entropy tells them apart


def test_random_weights_are_those_of_ea_in_another_order():
    student, teacher = torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    drawn = ea_weight(student, teacher, kind="random")
    weight = ea_weight(student, teacher)
    assert torch.equal(drawn.sort().values, weight.sort().values) and (drawn == weight).sum() < 10
    assert not torch.equal(ea_weight(student, teacher, kind="random"), drawn)
    torch.manual_seed(3)  # as a run does in every step
    assert torch.equal(ea_weight(student, teacher, kind="random"), drawn)


def test_random_weights_of_groups_are_those_of_groups():
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    group = torch.tensor([5, 2, 5, 9, 2, 5])
    known = ea_weight(student, teacher, group=group)
    drawn = ea_weight(student, teacher, kind="random", group=group)
    assert torch.isin(drawn, known).all()
    for rows in ([0, 2, 5], [1, 4]):
        assert (drawn[rows] == drawn[rows[0]]).all()


def test_random_weights_of_groups_with_tokens_around_them_are_those_of_groups():
    student, teacher, group = torch.tensor([0.1, 0.3, 0.5, 0.7]), torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.arange(4)
    given = student.repeat(2), teacher.repeat(2), 10, group.repeat(2), (student, teacher, group)
    weight = Weighting().weights(*given)
    torch.testing.assert_close(weight, Weighting().weights(*given[:4]))  # what is around has the same means
    torch.manual_seed(0)
    drawn = Weighting("random").weights(*given)
    assert torch.equal(drawn[:4], drawn[4:]) and torch.isin(drawn, weight).all() and not torch.equal(drawn, weight)


def test_an_unknown_kind_or_level_is_refused_by_name():
    with pytest.raises(ValueError, match="interacts.*interact"):
        ea_weight(torch.zeros(1, 2), torch.zeros(1, 2), kind="interacts")
    with pytest.raises(ValueError, match="unknown level 'images'.* image,"):
        ea_weight(torch.zeros(1, 2), torch.zeros(1, 2), group=torch.zeros(1).long(), level="images")
    with pytest.raises(UserError, match="EA.LEVEL: expected one of sample, .*; found 'imge'; nearest: image"):
        load_cfg(None, ["EA.LEVEL", "imge"])
    assert load_cfg(None, ["EA.FOREGROUND_ONLY", 1]).DETECTION.FOREGROUND_ONLY is True


def test_normalized_weights_of_a_batch_without_any_weight_are_finite():
    one_hot = torch.tensor([[1e4, 0.0]])
    assert ea_weight(one_hot, one_hot, kind="normalized").item() == 0.0


@pytest.mark.parametrize("row", [[math.inf, 0.0], [0.0, -math.inf], [3e38, -3e38], [1e3, -1e3]])
def test_extreme_one_hot_rows_have_entropy_exactly_zero(row):
    assert entropy(torch.tensor([row]), temperature=0.5).item() == 0.0


def test_weights_of_half_precision_logits_are_float32_and_of_float64_are_float64():
    assert entropy(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert entropy(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_autocast_does_not_lower_the_precision():
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)) * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = ea_weight(logits, logits.flip(0))
    assert torch.equal(weight, ea_weight(logits, logits.flip(0)))


def test_weights_carry_no_gradient():
    logits = torch.zeros(1, 4, requires_grad=True)
    assert not ea_weight(logits, logits).requires_grad
