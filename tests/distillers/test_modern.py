"""Logit methods since 2022: numbers computed by hand, and their distillers."""

import math

import pytest
import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS
from mdistiller.distillers.crld import crld_losses
from mdistiller.distillers.dist import dist_losses
from mdistiller.distillers.nkd import nkd_loss
from mdistiller.distillers.rld import rld_loss
from mdistiller.errors import UserError
from mdistiller.models import Output
from tests.distillers.support import distiller_of, fixed_step, tiny_batch, tiny_distiller

MODERN = ["DIST", "NKD", "SIMKD", "CATKD", "SDD", "RLD", "WKD", "CRLD"]
LOG2 = math.log(2)


def logits_of(*rows):
    """Logits whose softmax at temperature 1 are these rows, in float64."""
    return torch.tensor(rows, dtype=torch.float64).log()


def expect(actual, *values):
    torch.testing.assert_close(actual, torch.tensor(values, dtype=actual.dtype).reshape(actual.shape))


# --- DIST ------------------------------------------------------------------------------------------------------------


def test_dist_of_perfectly_correlated_probabilities_is_zero():
    teacher = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    student = 0.5 * teacher + 0.5 / 3  # an affine function of them, over classes and over samples
    losses = dist_losses(student.log(), teacher.log(), temperature=1.0)
    torch.testing.assert_close(losses["inter"], torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses["intra"], torch.zeros(()).double(), atol=1e-6, rtol=0)


def test_dist_of_opposed_pairs_is_two_times_the_squared_temperature():
    teacher, student = logits_of([0.7, 0.3], [0.3, 0.7]), logits_of([0.3, 0.7], [0.7, 0.3])
    losses = dist_losses(3 * student, 3 * teacher, temperature=3.0)
    expect(losses["inter"], 18.0, 18.0)
    expect(losses["intra"], 18.0)


def test_dist_between_and_within_classes_by_hand():
    teacher, student = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], [[0.5, 0.1, 0.4], [0.1, 0.6, 0.3]]
    losses = dist_losses(logits_of(*student), logits_of(*teacher), temperature=1.0)
    # centred, in thirtieths: (8, -1, -7) and (5, -7, 2); (-4, 5, -1) and (-7, 8, -1)
    first, second = 33 / math.sqrt(114 * 78), 69 / math.sqrt(42 * 114)
    torch.testing.assert_close(losses["inter"], 1 - torch.tensor([first, second]).double(), rtol=1e-4, atol=0)
    # two samples correlate fully: classes 0 and 1 with the same sign, class 2 with the opposite one
    torch.testing.assert_close(losses["intra"], torch.tensor(2 / 3).double(), rtol=1e-5, atol=0)


def test_dist_of_a_batch_of_one_has_a_constant_intra_class_term():
    logits = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    loss = dist_losses(logits, torch.randn(1, 5, dtype=torch.float64), temperature=1.0)["intra"]
    loss.backward()
    assert loss.item() == 1.0 and torch.equal(logits.grad, torch.zeros_like(logits))


# --- NKD -------------------------------------------------------------------------------------------------------------


def test_nkd_by_hand():
    teacher, student = logits_of([0.5, 0.3, 0.2]), logits_of([0.25, 0.5, 0.25])
    loss = nkd_loss(student, teacher, torch.tensor([0]), temperature=1.0, gamma=2.0)
    others = -(0.6 * math.log(2 / 3) + 0.4 * math.log(1 / 3))  # teacher (.6, .4), student (2/3, 1/3)
    expect(loss, 0.5 * 2 * LOG2 + 2 * others)


def test_nkd_softens_the_other_classes_alone():
    teacher, student = 4 * logits_of([0.5, 0.3, 0.2]), 4 * logits_of([0.25, 0.5, 0.25])
    loss = nkd_loss(student, teacher, torch.tensor([0]), temperature=4.0, gamma=2.0)
    target = 0.5**4 / (0.5**4 + 0.3**4 + 0.2**4), 0.25**4 / (2 * 0.25**4 + 0.5**4)
    others = -(0.6 * math.log(2 / 3) + 0.4 * math.log(1 / 3))
    expect(loss, -target[0] * math.log(target[1]) + 2 * 16 * others)


# --- RLD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, student_on_target, correlation",
    [
        (0, 0.2, 0.6 * math.log(0.6 / 0.75) + 0.4 * math.log(0.4 / 0.25)),  # classes 1, 2: (.6, .4) and (.75, .25)
        (1, 0.6, 0.0),  # class 2 alone is less likely than the target
        (2, 0.2, 0.0),  # no class is
    ],
)
def test_rld_takes_the_teachers_greatest_confidence_and_hides_its_mistakes(target, student_on_target, correlation):
    teacher, student = logits_of([0.5, 0.3, 0.2]), logits_of([0.2, 0.6, 0.2]).requires_grad_()
    loss = rld_loss(student, teacher, torch.tensor([target]), 1.0, 8.0, temperature=1.0, confidence_temperature=1.0)
    confidence = 0.5 * math.log(0.5 / student_on_target) + 0.5 * math.log(0.5 / (1 - student_on_target))
    expect(loss, confidence + 8 * correlation)
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_rld_temperatures_are_separate_and_squared():
    teacher, student, target = logits_of([0.5, 0.3, 0.2]), logits_of([0.2, 0.6, 0.2]), torch.tensor([0])
    confidence = rld_loss(student, teacher, target, 1.0, 0.0, 1.0, 1.0)
    correlation = rld_loss(student, teacher, target, 0.0, 1.0, 1.0, 1.0)
    torch.testing.assert_close(rld_loss(2 * student, 2 * teacher, target, 1.0, 0.0, 7.0, 2.0), 4 * confidence)
    torch.testing.assert_close(rld_loss(3 * student, 3 * teacher, target, 0.0, 1.0, 3.0, 7.0), 9 * correlation)


def test_rld_warms_up():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    early, _ = fixed_step("RLD", *logits, torch.arange(4), epoch=5)
    late, _ = fixed_step("RLD", *logits, torch.arange(4), epoch=40)
    torch.testing.assert_close(4 * early["rld"], late["rld"])


# --- CRLD ------------------------------------------------------------------------------------------------------------

SHARP = 0.95 * math.log(0.95 / 0.5) + 0.05 * math.log(0.05 / 0.5)  # KL of (.95, .05) from a uniform student


@pytest.mark.parametrize(
    "tau_weak, tau_strong, within, across",
    [(0.9, 0.2, 1, 1), (0.96, 0.2, 0, 1), (0.9, 0.6, 1, 0), (0.95 - 1e-9, 0.5, 1, 1)],
)
def test_crld_selects_samples_by_confidence_on_each_view(tau_weak, tau_strong, within, across):
    uniform, sharp = logits_of([0.5, 0.5]), logits_of([0.95, 0.05])
    losses = crld_losses(uniform, uniform, sharp, uniform, 1.0, tau_weak, tau_strong)
    expect(losses["within_weak"], within * SHARP)
    expect(losses["cross_weak"], across * SHARP)
    expect(losses["within_strong"], 0.0)
    expect(losses["cross_strong"], 0.0)
    mirrored = crld_losses(uniform, uniform, uniform, sharp, 1.0, 0.0, 0.0)
    expect(mirrored["within_strong"], SHARP)
    expect(mirrored["cross_strong"], SHARP)


def test_crld_standardizes_the_divergences_and_not_the_confidences():
    weak, strong, teacher, other = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    once = crld_losses(weak, strong, teacher, other, 2.0, 0.0, 0.0, standardize=True)
    scaled = crld_losses(weak, strong, 9 * teacher, other, 2.0, 0.0, 0.0, standardize=True)
    torch.testing.assert_close(once, scaled, rtol=1e-5, atol=1e-8)
    assert crld_losses(weak, strong, teacher, other, 2.0, 0.9, 0.0, standardize=True)["within_weak"].sum() == 0
    assert crld_losses(weak, strong, 99 * teacher, other, 2.0, 0.9, 0.0, standardize=True)["within_weak"].sum() > 0


class Pixels(nn.Module):
    """A network whose logits are the first pixels of the image."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, image):
        return Output(self.scale * image.flatten(1)[:, :5], {})


def test_crld_weighs_a_term_by_the_teachers_view():
    distiller = distiller_of("CRLD", Pixels(1.0), Pixels(2.0), "CRLD.TAU_W", 0.0, "CRLD.TAU_S", 0.0)
    batch = tiny_batch(5)
    plain = distiller(**batch)[1]
    weak = 2 * batch["image"].flatten(1)[:, :5]
    distiller.sample_weight = lambda student, teacher: torch.full((4,), 10.0 if torch.equal(teacher, weak) else 100.0)
    weighted = distiller(**batch)[1]
    factors = {"ce": 1, "within_weak": 10, "cross_weak": 10, "within_strong": 100, "cross_strong": 100}
    assert factors.keys() == plain.keys()
    for key, factor in factors.items():
        torch.testing.assert_close(weighted[key], factor * plain[key], msg=key)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODERN)
@pytest.mark.parametrize("num_classes, size", [(2, 32), (200, 64)])
def test_modern_methods_run_for_two_and_for_200_classes_at_64x64(name, num_classes, size):
    distiller = tiny_distiller(f"EA-{name}", num_classes=num_classes)
    batch = tiny_batch(num_classes, size=2)
    for view in ("image", "image_strong"):
        batch[view] = nn.functional.interpolate(batch[view], size=size)
    losses = distiller(**batch)[1]
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in distiller.parameters())


@pytest.mark.parametrize("name", MODERN)
def test_float64_stays_float64(name):
    distiller = tiny_distiller(name).double()
    batch = {key: value.double() if key.startswith("image") else value for key, value in tiny_batch().items()}
    assert {loss.dtype for loss in distiller(**batch)[1].values()} == {torch.float64}


@pytest.mark.parametrize(
    "alias, name",
    [("CAT-KD", "CATKD"), ("cat_kd", "CATKD"), ("SDD_KD", "SDD"), ("WKD-L", "WKD"), ("ea-wkd-l", "EA-WKD")],
)
def test_published_spellings_are_understood(alias, name):
    assert DISTILLERS[alias] is DISTILLERS[name]


@pytest.mark.parametrize(
    "key, value",
    [
        ("SDD.LOSS", "nst"), ("SDD.M", [2, 4]), ("SDD.M", []), ("CAT_KD.LOSS.CAM_RESOLUTION", 0), ("RLD.ALPHA_T", 0.0),
        ("WKD.COST_MATRIX", "cosine"), ("WKD.SINKHORN.LAMBDA", 1e-3), ("WKD.SAMPLES", 1), ("SIMKD.FACTOR", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load_cfg(None, [key, value])
