"""FitNet, AT, NST, PKT, KDSVD, OFD, RKD, VID and SP: numbers computed by hand, edge cases, and refused inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers.at import at_loss
from mdistiller.distillers.fitnet import ConvRegressor, fitnet_loss
from mdistiller.distillers.kdsvd import kdsvd_loss
from mdistiller.distillers.nst import nst_loss
from mdistiller.distillers.ofd import margin_from_bn, ofd_loss
from mdistiller.distillers.pkt import pkt_loss
from mdistiller.distillers.rkd import rkd_loss
from mdistiller.distillers.sp import sp_loss
from mdistiller.distillers.vid import vid_loss
from mdistiller.errors import UserError
from mdistiller.losses import kdsvd
from mdistiller.models import Output, build_model
from tests.distillers.support import Fixed, distiller_of, tiny_batch, tiny_distiller

METHODS = ["FITNET", "AT", "NST", "PKT", "KDSVD", "OFD", "RKD", "VID", "SP", "CRD"]


def maps(*rows):
    """One sample of a map one pixel high: a row of pixels per channel."""
    return torch.tensor(rows, dtype=torch.float64)[None, :, None, :]


# --- losses by hand --------------------------------------------------------------------------------------------------


def test_fitnet_is_a_mean_over_every_element():
    loss = fitnet_loss(torch.stack([torch.zeros(2, 2, 2), torch.full((2, 2, 2), 3.0)]), torch.zeros(2, 2, 2, 2))
    torch.testing.assert_close(loss, torch.tensor([0.0, 9.0]))


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        # squares 1, 0 -> (1, 0); squares 3, 4 -> (0.6, 0.8): mean of 0.4^2 and 0.8^2
        (maps([1.0, 0.0]), maps([math.sqrt(3), 2.0]), 0.4),
        (maps([1.0, 0.0]), maps([5.0, 0.0], [5.0, 0.0]), 0.0),  # channels and scale do not matter
        (maps([0.0, 0.0]), maps([1.0, 0.0]), 0.5),  # a map of zeros has no attention
    ],
)
def test_attention_by_hand(student, teacher, expected):
    loss = at_loss([student.requires_grad_()] * 2, [teacher] * 3)
    torch.testing.assert_close(loss, torch.tensor([2 * expected], dtype=torch.float64))  # two stages are paired
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("copies", [1, 4])  # fewer channels than positions, and more
def test_selectivity_by_hand(copies):
    ones, other = [[1.0, 0.0, 0.0]] * copies, [[0.0, -2.0, 0.0]] * copies
    torch.testing.assert_close(nst_loss([maps(*ones)], [maps(*other)]), torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(nst_loss([maps(*ones)], [maps(*ones)]), torch.zeros(1, dtype=torch.float64))
    # u = (1, 0, 0), v = (0.6, 0.8, 0): 1 + 1 - 2 * 0.6^2
    loss = nst_loss([maps(*ones)], [maps(*[[3.0, 4.0, 0.0]] * copies)])
    torch.testing.assert_close(loss, torch.tensor([1.28], dtype=torch.float64))


@pytest.mark.parametrize("channels_student, channels_teacher, side", [(3, 5, 4), (20, 24, 4), (3, 24, 4), (20, 3, 2)])
def test_selectivity_equals_the_sum_over_all_pairs_of_channels(channels_student, channels_teacher, side):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, channels, side, side, generator=generator, dtype=torch.float64)
        for channels in (channels_student, channels_teacher)
    )
    s, t = (feat.flatten(2) / feat.flatten(2).norm(dim=2, keepdim=True) for feat in (student, teacher))
    kernel = {
        (a, b): torch.einsum("bcn,bdn->bcd", u, v).square().mean((1, 2))
        for a, u in (("s", s), ("t", t)) for b, v in (("s", s), ("t", t))
    }
    expected = kernel["t", "t"] + kernel["s", "s"] - 2 * kernel["s", "t"]
    torch.testing.assert_close(nst_loss([student], [teacher]), expected)


def test_affinity_by_hand():
    """Orthogonal rows have similarity 1/2 to each other, equal ones 1: rows (2/3, 1/3) and (1/2, 1/2)."""
    student, teacher = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    expected = (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 2
    expected = torch.full((2,), expected, dtype=torch.float64)
    torch.testing.assert_close(pkt_loss(student, teacher), expected, rtol=1e-6, atol=0)


def test_similarity_by_hand():
    """The identity against rows (1, 1) / sqrt 2; a zero row stays zero."""
    student, teacher = torch.eye(2), torch.ones(2, 4, 1, 1)
    expected = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2
    torch.testing.assert_close(sp_loss(student, teacher), torch.full((2,), expected))
    torch.testing.assert_close(sp_loss(torch.tensor([[1.0], [0.0]]), teacher)[1], torch.tensor(0.5))


def test_relations_of_points_on_a_line_by_hand():
    """Distances 1, 3, 2 over their mean 2 against 1, 2, 1 over 4/3: differences 1/4, 0, 1/4. Angles are equal."""
    student = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    rows = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) * (0.25**2 / 2) / 3
    torch.testing.assert_close(rkd_loss(student, teacher), 25 * rows)
    torch.testing.assert_close(rkd_loss(student, teacher, distance_weight=0.0), torch.zeros_like(rows))


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
@pytest.mark.parametrize("squared", [False, True])
def test_relations_of_one_sample_or_of_equal_ones_are_zero_with_a_finite_gradient(rows, squared):
    student = torch.tensor(rows, requires_grad=True)
    loss = rkd_loss(student, torch.tensor(rows) + 1, squared=squared)
    torch.testing.assert_close(loss, torch.zeros(len(rows)))
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_information_by_hand():
    one = torch.full((3,), math.log(math.e - 1))  # softplus 1
    prediction, target = torch.zeros(2, 3, 1, 1), torch.stack([torch.zeros(3, 1, 1), torch.full((3, 1, 1), 2.0)])
    torch.testing.assert_close(vid_loss(prediction, target, one, eps=0.0), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(  # variance 2: (4 / 2 + ln 2) / 2
        vid_loss(prediction, target, one, eps=1.0)[1], torch.tensor((2 + math.log(2)) / 2)
    )
    assert torch.isfinite(vid_loss(prediction, target, torch.tensor([1e3, -1e3, 0.0]))).all()


@pytest.mark.parametrize(
    "teacher, student, margin, expected",
    [
        (1.0, 3.0, -1.0, 4.0), (1.0, -1.0, -1.0, 4.0),  # for a positive target the loss is the squared difference
        (-0.5, 0.0, -1.0, 0.25), (-0.5, -0.7, -1.0, 0.0),  # for a negative target only larger values have a loss
        (-2.0, 0.0, -1.0, 1.0), (-2.0, -1.5, -1.0, 0.0),  # below the margin, the margin counts
        (-2.0, -1.5, 0.0, 0.0), (-2.0, 0.5, 0.0, 0.25),
    ],
)
def test_partial_distance_by_hand(teacher, student, margin, expected):
    student, teacher = torch.full((1, 1, 1, 2), student), torch.full((1, 1, 1, 2), teacher)
    margin = torch.tensor([margin])
    torch.testing.assert_close(ofd_loss(student, teacher, margin), torch.tensor([2 * expected]))  # a sum over pixels
    levels = [student] * 3, [teacher] * 3, [margin] * 3
    torch.testing.assert_close(ofd_loss(*levels), torch.tensor([2 * expected * (1 / 4 + 1 / 2 + 1)]))


def test_the_deepest_level_has_the_largest_weight():
    zeros = torch.zeros(1, 1, 1, 1)
    student, margins = [zeros, zeros, zeros + 8], [torch.tensor([-1.0])] * 3
    torch.testing.assert_close(ofd_loss(student, [zeros] * 3, margins), torch.tensor([64.0]))
    torch.testing.assert_close(ofd_loss(student[::-1], [zeros] * 3, margins), torch.tensor([16.0]))


def test_margins_by_hand():
    """E[x | x < 0] is -sqrt(2/pi) for N(0, 1); the sign of the weight does not matter; negatives rare; weight 0."""
    weight = torch.tensor([1.0, -1.0, 2.0, 0.1, 0.0, 0.0], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, 0.0, 5.0, -2.0, 2.0], dtype=torch.float64)
    mean = -math.sqrt(2 / math.pi)
    expected = torch.tensor([mean, mean, 2 * mean, -0.3, -2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(margin_from_bn(weight, bias), expected)
    assert margin_from_bn(weight.float(), bias.float()).dtype == torch.float32


# --- KDSVD -----------------------------------------------------------------------------------------------------------


def random_maps(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, size, size, generator=generator) for size in sizes]


def test_singular_loss_is_zero_for_equal_maps_and_sees_no_scale():
    feats = random_maps(8, 8, 4)
    torch.testing.assert_close(kdsvd_loss(feats, feats), torch.zeros(2))
    torch.testing.assert_close(kdsvd_loss([3 * feat for feat in feats], feats, k=2), torch.zeros(2), atol=1e-5, rtol=0)
    assert kdsvd_loss(random_maps(8, 8, 4, seed=1), feats).min() > 1e-4


def test_singular_loss_of_rank_one_maps_by_hand():
    """The main vectors are e1, then e1 at the teacher, and e1, then e2 at the student."""
    first, second = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    first[..., 0], second[..., 1] = 1.0, 1.0
    # at the second stage the student's e1, its other vector, is the one that is closest to the teacher's
    torch.testing.assert_close(kdsvd_loss([first, second], [first, first], sign="canonical"), torch.zeros(1))
    # with e2 alone nothing is left of it, as e1 . e2 = 0; with q = exp(-1/8), the cost of a difference of 1,
    # the teacher's relation is (1, q; q, 1) and the student's, of (0, 0) to (1, 0), is (q, 1; q, 1)
    e1, e2, one = torch.eye(2)[None, :, :1], torch.eye(2)[None, :, 1:], torch.ones(1, 1)
    loss = kdsvd.relation_loss([(e1, e1, one), (e2, e1, one)])
    torch.testing.assert_close(loss, torch.tensor([2 * (1 - math.exp(-1 / 8)) ** 2]))


def test_singular_loss_refuses_an_unknown_sign():
    feats = [torch.ones(1, 1, 2, 2)] * 2
    with pytest.raises(ValueError, match="^unknown sign 'canon': expected one of library, canonical$"):
        kdsvd_loss(feats, feats, sign="canon")


def test_canonical_signs_do_not_depend_on_the_librarys(monkeypatch):
    student, teacher, svd = random_maps(8, 8, 4), random_maps(8, 8, 4, seed=1), torch.linalg.svd

    def losses():
        return [kdsvd_loss(student, teacher, sign=sign) for sign in kdsvd.SIGNS]

    library, canonical = losses()

    def flipped(matrix, full_matrices):
        u, s, vh = svd(matrix, full_matrices=full_matrices)
        return u, s, -vh if matrix.shape[2] == 4 else vh

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    torch.testing.assert_close(losses()[1], canonical)
    assert not torch.allclose(losses()[0], library, rtol=0.01)


def test_singular_loss_survives_dead_and_diverged_maps():
    student, teacher = random_maps(8, 8, 4), random_maps(8, 8, 4, seed=1)
    for feat in student:
        feat[0] = 0.0
    student[1][1, 0, 0, 0] = float("inf")
    student = [feat.requires_grad_() for feat in student]
    loss = kdsvd_loss(student, teacher)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and all(torch.isfinite(feat.grad).all() for feat in student)
    assert student[2].grad[1].abs().max() > 0  # the other sample still learns


# --- modules and networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, teacher, student, expected",
    [
        ("FITNET", "resnet32x4", "resnet8x4", 16768),
        ("FITNET", "resnet56", "resnet20", 1120),
        ("FITNET", "wrn_40_2", "wrn_16_2", 4288),
        ("FITNET", "wrn_40_2", "wrn_40_1", 2240),
        ("OFD", "resnet32x4", "resnet8x4", 86912),
        ("OFD", "wrn_40_2", "wrn_16_2", 21952),
        ("OFD", "resnet56", "resnet20", 5600),
        ("VID", "resnet32x4", "resnet8x4", 258048),
        ("VID", "wrn_40_2", "wrn_16_2", 64512),
        ("VID", "resnet56", "resnet20", 16128),
    ],
)
def test_extra_parameters(name, teacher, student, expected):
    opts = ["VID.TRAIN_SCALE", False] if name == "VID" else []
    distiller = tiny_distiller(name, *opts, num_classes=100, student=student, teacher=teacher)
    assert distiller.extra_parameters() == expected


@pytest.mark.parametrize("train_scale", [True, False])
def test_the_variances_of_vid_start_at_five_and_move_only_when_trained(train_scale):
    distiller = tiny_distiller("VID", "VID.TRAIN_SCALE", train_scale)
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=0.1)
    for scale in distiller.log_scales:
        torch.testing.assert_close(F.softplus(scale) + 1e-5, torch.full_like(scale, 5.0))
    before = [scale.clone() for scale in distiller.log_scales]
    sum(distiller(**tiny_batch())[1].values()).backward()
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, distiller.log_scales, strict=True)]
    assert moved == [train_scale] * 3
    assert "log_scales.0" in distiller.state_dict()


def test_a_regressor_needs_a_size_that_a_convolution_can_make():
    with pytest.raises(ValueError, match=r"no convolution changes a map of size \(4, 4\) to \(7, 7\)"):
        ConvRegressor((1, 3, 4, 4), (1, 5, 7, 7))


class Averages(nn.Module):
    """Maps of a given stride, whatever the image size."""

    def __init__(self, stride):
        super().__init__()
        self.stride, self.fc = stride, nn.Linear(3, 10)

    def forward(self, image):
        return Output(self.fc(image.mean((2, 3))), {"feats": [F.avg_pool2d(image, self.stride)] * 3})


@pytest.mark.parametrize(
    "image_size, opts, kernel",
    [(None, [], 1 + 16 - 4), (None, ["FITNET.INPUT_SIZE", [48, 48]], 1 + 24 - 6), (64, [], 1 + 32 - 8)],
)
def test_the_regressor_of_fitnet_fits_the_data_else_input_size(image_size, opts, kernel):
    info = {"num_classes": 10, "image_size": image_size}
    distiller = distiller_of("FITNET", Averages(2), Averages(8), *opts, data_info=info)
    assert distiller.conv_reg.conv.kernel_size == (kernel, kernel)


@pytest.mark.parametrize("mode, moves", [("train", True), ("eval", False)])
def test_teacher_mode_of_ofd(mode, moves):
    distiller = tiny_distiller("OFD", "OFD.TEACHER_MODE", mode)
    assert distiller.teacher.training == moves and distiller.teacher_mode == mode
    before = distiller.teacher.bn1.running_mean.clone()
    distiller(**tiny_batch())
    assert torch.equal(before, distiller.teacher.bn1.running_mean) != moves
    assert not distiller.eval().teacher.training


def test_ofd_takes_the_deepest_levels_and_their_margins():
    distiller = tiny_distiller("OFD", student="resnet8", teacher="vgg8")
    norms = distiller.teacher.get_bn_before_relu()
    assert len(norms) == 4 and distiller.depth == 3
    for level, norm in enumerate(norms[-3:]):
        assert torch.equal(distiller.get_buffer(f"margin{level}"), margin_from_bn(norm.weight, norm.bias))
    assert [connect[0].out_channels for connect in distiller.connectors] == [256, 512, 512]


def test_ofd_reads_the_linear_stages_of_mobilenetv2():
    distiller = tiny_distiller("OFD", student="MobileNetV2", teacher="vgg8")
    assert [connect[0].in_channels for connect in distiller.connectors] == [12, 16, 48, 160]
    assert torch.isfinite(distiller(**tiny_batch())[1]["overhaul"])


def test_kdsvd_pools_unequal_widths_only_when_configured():
    names = {"student": "MobileNetV2", "teacher": "vgg8"}
    opts = ["DISTILLER.STUDENT", "MobileNetV2", "DISTILLER.TEACHER", "vgg8"]
    with pytest.raises(UserError, match="student MobileNetV2 16x16x16, .*; of teacher vgg8 64x32x32") as error:
        tiny_distiller("KDSVD", *opts, **names)
    assert "KDSVD.POOL: True" in str(error.value) and "\n" not in str(error.value)
    distiller = tiny_distiller("KDSVD", "KDSVD.POOL", True, *opts, **names)
    assert torch.isfinite(distiller(**tiny_batch())[1]["singular"])


@pytest.mark.parametrize(
    "name, opts, networks, message",
    [
        ("FITNET", ["FITNET.HINT_LAYER", 4], {}, "FITNET.HINT_LAYER: expected .* 0 to 3; found 4"),
        ("KDSVD", ["KDSVD.K", 9], {}, "KDSVD.K: expected at most 8, .*; found 9"),
        ("OFD", [], {"teacher": "ShuffleV1"}, "OFD cannot use these networks .* batch norm before .* 960x4x4"),
    ],
)
def test_networks_and_settings_that_do_not_fit_are_refused(name, opts, networks, message):
    with pytest.raises(UserError, match=message) as error:
        tiny_distiller(name, *opts, **networks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["FITNET", "AT", "NST", "KDSVD", "OFD", "VID", "SP"])
def test_a_network_without_maps_is_refused(name):
    networks = [Fixed(torch.zeros(4, 10), {"pooled_feat": torch.zeros(4, 8)}) for _ in range(2)]
    with pytest.raises(UserError, match=f"^{name} cannot use these networks .*: maps of student Fixed none"):
        distiller_of(name, *networks)


@pytest.mark.parametrize("name", ["AT", "NST", "KDSVD", "VID"])
def test_a_network_with_a_stem_alone_is_refused(name):
    networks = [Fixed(torch.zeros(4, 10), {"feats": [torch.zeros(4, 8, 5, 5)]}) for _ in range(2)]
    with pytest.raises(UserError, match=f"^{name} cannot use .* besides the stem.: maps of student Fixed 8x5x5"):
        distiller_of(name, *networks)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("AT.P", 0, "AT.P: expected a number at least 1 and at most 64; found 0"),
        ("KDSVD.K", 0, "KDSVD.K: expected a number at least 1 and at most 4096; found 0"),
        ("KDSVD.SIGN", "lapack", "KDSVD.SIGN: expected one of library, canonical; found 'lapack'"),
        ("OFD.TEACHER_MODE", "frozen", "OFD.TEACHER_MODE: expected one of train, eval; found 'frozen'"),
        ("OFD.CONNECTOR.KERNEL_SIZE", 2, "OFD.CONNECTOR.KERNEL_SIZE: expected one of 1, 3, 5, 7, 9, 11; found 2"),
        ("RKD.PDIST.EPSILON", 0.0, "RKD.PDIST.EPSILON: expected a number greater than 0 and at most 1; found 0.0"),
        ("VID.INIT_PRED_VAR", 0.0, "VID.INIT_PRED_VAR: expected a number greater than 0 and at most 1e+06; found 0.0"),
    ],
)
def test_invalid_values_are_refused_with_their_key(key, value, message):
    with pytest.raises(UserError) as error:
        load_cfg(None, ["DISTILLER.TYPE", key.split(".")[0], key, value])
    assert str(error.value) == f"command line: {message}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_classes, size, batch", [(200, 64, 2), (2, 32, 1)])
def test_every_classical_method_accepts_large_images_two_classes_and_a_batch_of_one(name, num_classes, size, batch):
    torch.manual_seed(0)
    info = {"num_classes": num_classes, "num_train": 8, "image_size": size, "targets": torch.arange(8) % num_classes}
    networks = build_model("resnet8", num_classes), build_model("resnet14", num_classes)
    distiller = distiller_of(name, *networks, data_info=info)
    index = torch.arange(batch)
    _, losses = distiller(image=torch.randn(batch, 3, size, size), target=index % num_classes, index=index)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in distiller.learnable_parameters() if p.grad is not None)


def test_affinity_is_exact_in_float32_where_student_and_teacher_are_close():
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        student, teacher = (0.3 + torch.rand(5, width, generator=draw) for width in (24, 40))
        exact = pkt_loss(student.double(), teacher.double()).mean().item()
        assert pkt_loss(student, teacher).mean().item() == pytest.approx(exact, rel=1e-4)


def test_singular_loss_takes_maps_of_one_width_as_they_are():
    square, teacher = random_maps(4, 4), random_maps(4, 4, seed=1)
    tall = [torch.cat([square[0], square[0]], dim=2), square[1]]  # the same right singular vectors
    torch.testing.assert_close(kdsvd_loss(tall, teacher), kdsvd_loss(square, teacher))
    wide = [square[0].repeat_interleave(2, dim=3), square[1]]  # averages to what it was made of
    torch.testing.assert_close(kdsvd_loss(wide, teacher), kdsvd_loss(square, teacher))
