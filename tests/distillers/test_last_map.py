"""Methods that classify before pooling: SIMKD, CATKD, SDD, and the map they read."""

import pytest
import torch
from torch import nn

from mdistiller.distillers.catkd import catkd_loss, class_activation_maps
from mdistiller.distillers.last_map import classifier_of, run_to_map
from mdistiller.distillers.sdd import multi_scale_logits, sdd_loss
from mdistiller.distillers.simkd import simkd_loss
from mdistiller.engine.optim import build_updater
from mdistiller.errors import UserError
from mdistiller.models import Output, build_model
from tests.distillers.support import distiller_of, tiny_batch, tiny_distiller

NETWORKS = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"]
INFO = {"num_classes": 10, "num_train": 40, "image_size": 32}


@pytest.mark.parametrize("name, size", [*((name, 32) for name in NETWORKS), ("vgg8", 64)])
def test_the_classified_mean_of_the_map_is_the_networks_logits(name, size):
    torch.manual_seed(0)
    network, image = build_model(name, 10).eval(), torch.randn(1, 3, size, size)
    with torch.no_grad():
        output, plain = run_to_map(network, image), network(image)
    torch.testing.assert_close(output.logits, plain.logits)
    torch.testing.assert_close(output.features["map"].mean((2, 3)), plain.features["pooled_feat"])
    torch.testing.assert_close(classifier_of(network)(output.features["map"].mean((2, 3))), plain.logits)


@pytest.mark.parametrize("name", ["wrn_16_1", "MobileNetV2"])
def test_running_statistics_are_updated_once_per_step(name):
    network = build_model(name, 10).train()
    run_to_map(network, torch.randn(2, 3, 32, 32))
    assert {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


class Uncut(nn.Module):
    """A network without stages; `normed` adds a norm between its pooled map and its classifier."""

    def __init__(self, normed):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4)
        self.norm = nn.LayerNorm(6) if normed else nn.Identity()
        self.out = nn.Linear(6, 10)

    def forward(self, image):
        feat = self.conv(image)
        pooled = self.norm(feat.mean((2, 3)))
        return Output(self.out(pooled), {"feats": [feat], "pooled_feat": pooled})


@pytest.mark.parametrize("name", ["SIMKD", "CATKD", "SDD"])
def test_networks_without_stages_serve_if_their_last_feats_are_classified_and_are_refused_otherwise(name):
    distiller = distiller_of(name, build_model("resnet8", 10), Uncut(normed=False), data_info=INFO)
    losses = distiller(**tiny_batch())[1]
    assert all(torch.isfinite(loss) for loss in losses.values())
    with pytest.raises(UserError, match=f"{name}.*one linear layer.*64x8x8.*6x8x8"):
        distiller_of(name, build_model("resnet8", 10), Uncut(normed=True), data_info=INFO)


# --- SIMKD -----------------------------------------------------------------------------------------------------------


def test_simkd_loss_by_hand():
    teacher = torch.tensor([[[[1.0, 3.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0], [4.0, 4.0, 8.0, 8.0], [4.0, 4.0, 8.0, 8.0]]]])
    student = torch.tensor([[[[2.0, 1.0], [4.0, 5.0]]]])  # against (2, 0; 4, 8)
    torch.testing.assert_close(simkd_loss(student, teacher), torch.tensor([(0 + 1 + 0 + 9) / 4]))


def test_simkds_student_uses_the_teachers_classifier_untouched():
    distiller = tiny_distiller("SIMKD")
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        logits, losses = distiller(**tiny_batch(seed=step))
        assert losses["ce"] == 0
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert torch.equal(distiller.classifier.weight, distiller.teacher.fc.weight)
    assert torch.equal(distiller.classifier.bias, distiller.teacher.fc.bias)
    assert logits.grad_fn is not None and torch.isfinite(logits).all()
    trained = {id(parameter) for parameter in distiller.learnable_parameters()}
    unused = [*distiller.classifier.parameters(), *distiller.student.fc.parameters()]
    assert not any(id(parameter) in trained for parameter in unused)
    projector = sum(parameter.numel() for parameter in distiller.projector.parameters())
    assert distiller.extra_parameters() == projector == 64 * 32 + 32 * 32 * 9 + 32 * 64 + 2 * (32 + 32 + 64)


def test_simkd_with_the_teachers_own_map_predicts_what_the_teacher_does():
    distiller = tiny_distiller("SIMKD", student="resnet8", teacher="resnet8")
    distiller.student.load_state_dict(distiller.teacher.state_dict())
    distiller.projector = nn.Identity()
    image = tiny_batch()["image"]
    with torch.no_grad():
        torch.testing.assert_close(distiller.eval()(image), distiller.teacher(image).logits)


def test_simkds_state_holds_all_that_it_predicts_with():
    trained = tiny_distiller("SIMKD")
    trained(**tiny_batch())  # moves the statistics of the norms
    torch.manual_seed(1)
    networks = build_model("resnet8", 10), build_model("resnet14", 10)  # a teacher without the weights
    reopened = distiller_of("SIMKD", *networks, data_info=INFO)
    reopened.load_state_dict(trained.state_dict())
    image = tiny_batch()["image"]
    with torch.no_grad():
        assert torch.equal(reopened.eval()(image), trained.eval()(image))
        assert torch.equal(trained.deployed()(image).logits, trained(image))
    keys = set(trained.deployed().state_dict())
    assert {key.split(".")[0] for key in keys} == {"encoder", "projector", "classifier"}


@pytest.mark.parametrize("student, channels", [("ShuffleV2", 464), ("MobileNetV2", 160)])
def test_simkd_can_project_the_map_before_a_students_last_convolution(student, channels):
    distiller = tiny_distiller("SIMKD", "SIMKD.STUDENT_MAP", "before_last_conv", student=student)
    assert distiller.projector[0].in_channels == channels
    sum(distiller(**tiny_batch())[1].values()).backward()
    assert all(parameter.grad is not None for parameter in distiller.learnable_parameters())
    assert not distiller.student.conv2.weight.requires_grad if student == "ShuffleV2" else True
    assert distiller.eval()(tiny_batch()["image"]).shape == (4, 10)


@pytest.mark.parametrize("student, teacher", [("vgg8", "MobileNetV2"), ("MobileNetV2", "vgg8")])
def test_simkd_projects_at_the_smaller_of_the_two_sizes(student, teacher):
    distiller = tiny_distiller("SIMKD", student=student, teacher=teacher)
    image = tiny_batch()["image"]
    assert distiller.run_student(image).features["map"].shape[2:] == (2, 2)
    assert torch.isfinite(distiller(**tiny_batch())[1]["simkd"])


# --- CATKD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize, expected", [(True, 0.2), (False, 5.0)])
def test_catkd_loss_by_hand(normalize, expected):
    teacher, student = torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    # normalised: (.6, 0, .8, 0) and (1, 0, 0, 0), squares .16 + .64 over four positions; else 4 + 16
    loss = catkd_loss(student.view(1, 1, 2, 2), teacher.view(1, 1, 2, 2), resolution=2, normalize=normalize)
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_catkd_pools_maps_of_any_size_and_keeps_silent_maps_finite():
    teacher = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None]
    student = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = catkd_loss(student, teacher)
    torch.testing.assert_close(loss, torch.tensor([0.25]))
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_class_activation_maps_average_to_the_logits_without_bias():
    feature_map, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
    cams = class_activation_maps(feature_map, weight)
    torch.testing.assert_close(cams.mean((2, 3)), feature_map.mean((2, 3)) @ weight.mT)


def test_only_cat_leaves_out_the_cross_entropy():
    losses = tiny_distiller("CATKD", "CAT_KD.onlyCAT", True)(**tiny_batch())[1]
    assert losses["ce"] == 0 and losses["cat"] > 0


# --- SDD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "right_on_the_map, right_in_cells, expected",
    [(True, (True, False), 1 + 2 + 2 * 3), (False, (True, False), 1 + 2 * 2 + 3), (True, (True, True), 6)],
)
def test_sdd_doubles_cells_that_disagree_with_the_whole_map(right_on_the_map, right_in_cells, expected):
    right, wrong = torch.tensor([0.0, 5.0, 1.0]), torch.tensor([5.0, 1.0, 0.0])  # target 1
    teacher = torch.stack([right if is_right else wrong for is_right in (right_on_the_map, *right_in_cells)])[None]
    losses = torch.tensor([1.0, 2.0, 3.0])
    loss = sdd_loss(teacher, teacher, torch.tensor([1]), lambda *_: losses, complementary_weight=2.0)
    torch.testing.assert_close(loss, torch.tensor([expected / 3]))


def test_sdd_cells_are_those_of_the_grids_the_whole_map_first():
    feature_map = torch.arange(16.0).view(1, 1, 4, 4)
    logits = multi_scale_logits(feature_map, nn.Identity(), [1, 2])
    assert logits.flatten().tolist() == [7.5, 2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize("loss, baseline", [("kd", "KD"), ("dkd", "DKD")])
def test_sdd_on_the_whole_map_alone_is_its_baseline(loss, baseline):
    losses = [
        tiny_distiller(name, *opts)(**tiny_batch())[1]
        for name, opts in (("EA-SDD", ("SDD.M", [1], "SDD.LOSS", loss, "SDD.WARMUP", 20)), (f"EA-{baseline}", ()))
    ]
    torch.testing.assert_close(losses[0]["ce"], losses[1]["ce"])
    torch.testing.assert_close(losses[0]["sdd"], losses[1][loss])


def test_sdd_clips_and_warms_up_as_its_authors_do():
    distiller = tiny_distiller("SDD", "SDD.LOSS", "dkd")
    assert distiller.warmup == 1
    for opts, norm in (((), 40.0), (("SOLVER.CLIP_NORM", 3.0), 3.0), (("SDD.CLIP_NORM", 0.0), 0.0)):
        distiller = tiny_distiller("SDD", *opts)
        assert build_updater(distiller.cfg, distiller, torch.device("cpu")).clip_norm == norm
    distiller = tiny_distiller("SDD", "SDD.CLIP_NORM", 2.0, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
    updater = build_updater(distiller.cfg, distiller, torch.device("cpu"))
    updater.step({"ce": 100 * sum(parameter.sum() for parameter in distiller.learnable_parameters())})
    total = sum(float(parameter.grad.square().sum()) for parameter in distiller.learnable_parameters())
    assert total**0.5 == pytest.approx(2.0, rel=1e-4)
    for method, key, value in (("SDD", "SDD.CLIP_NORM", 40.0), ("KD", "SOLVER.CLIP_NORM", 3.0)):  # DOT cannot clip
        distiller = tiny_distiller(method, "SOLVER.TRAINER", "dot", key, value)
        with pytest.raises(UserError, match=f"{key}: SOLVER.TRAINER dot needs 0.0; found {value}"):
            build_updater(distiller.cfg, distiller, torch.device("cpu"))


def test_sdd_with_nkd_on_one_cell_is_nkd_with_the_settings_of_dkd():
    batch = tiny_batch() | {"epoch": 2}
    sdd = tiny_distiller("SDD", "SDD.LOSS", "nkd", "SDD.M", [1], "DKD.T", 3.0, "DKD.BETA", 1.5, "DKD.WARMUP", 4)
    nkd = tiny_distiller("NKD", "NKD.T", 3.0, "NKD.GAMMA", 1.5)
    torch.testing.assert_close(sdd(**batch)[1]["sdd"], nkd(**batch)[1]["nkd"] / 2, rtol=1e-4, atol=1e-5)


def test_sdd_standardizes_the_logits_of_every_cell():
    def run(factor):
        distiller = tiny_distiller("SDD", "DISTILLER.LS", True, "SDD.COMPLEMENTARY_WEIGHT", 1.0)
        for parameter in distiller.teacher.fc.parameters():
            parameter.data.mul_(factor)
        return distiller(**tiny_batch())[1]["sdd"]

    torch.testing.assert_close(run(1.0), run(3.0), rtol=1e-3, atol=1e-6)
