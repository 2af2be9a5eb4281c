"""Networks by name: families, users' networks, and errors for unknown names."""

import io

import pytest
import torch
import torchvision
from torch import nn

from mdistiller.errors import UserError
from mdistiller.models import MODELS, build_model, register_model, try_out
from tests.models.support import images


@pytest.fixture
def registered():
    """Names that a test adds to the cifar family, removed afterwards."""
    before = dict(MODELS["cifar"])
    yield
    MODELS["cifar"].clear()
    MODELS["cifar"].update(before)


def test_lookup_ignores_case():
    assert type(build_model("RESNET8X4", 10)) is type(build_model("resnet8x4", 10))


def test_a_name_means_another_network_in_another_family():
    networks = [build_model("MobileNetV2", 10, family) for family in ("cifar", "tiny_imagenet", "imagenet")]
    assert len({len(network.state_dict()) for network in networks}) == 3


def test_tiny_imagenet_has_every_cifar_network():
    assert set(MODELS["tiny_imagenet"]) == set(MODELS["cifar"])


def test_old_imagenet_configs_call_mobilenetv1_v2():
    assert MODELS["imagenet"]["MobileNetV2"] is MODELS["imagenet"]["MobileNetV1"]


@pytest.mark.parametrize(
    "name, family, near",
    [("resnet8x5", "cifar", "resnet8x4"), ("wrn_40_3", "tiny_imagenet", "wrn_40_"), ("ResNet51", "imagenet", "ResNet5"),
     ("resnet8", "cifra", "cifar")],
)  # fmt: skip
def test_an_unknown_name_is_a_user_error_with_the_nearest_names(name, family, near):
    with pytest.raises(UserError, match=f"unknown .*nearest: .*{near}"):
        build_model(name, 10, family)


def test_without_pretrained_weights_the_error_says_where_teachers_come_from():
    with pytest.raises(UserError, match="fetch_teachers.*TEACHER_CHECKPOINT"):
        build_model("resnet8", 100, pretrained=True)
    with pytest.raises(UserError, match="checkpoint"):
        build_model("MobileNetV1", 1000, "imagenet", pretrained=True)
    with pytest.raises(UserError, match="1000 classes, not 10"):
        build_model("ResNet18", 10, "imagenet", pretrained=True)


def test_a_users_network_is_built_by_its_name_with_its_keywords(registered):
    @register_model("tiny_mlp")
    class MLP(nn.Module):
        def __init__(self, num_classes, width=4):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.Linear(width, num_classes))

        def forward(self, x):
            return self.layers(x)

    assert build_model("tiny_mlp", num_classes=7, width=5)(images(8)).logits.shape == (2, 7)
    with pytest.raises(ValueError, match="already registered"):
        register_model("Tiny_MLP")(MLP)


def test_a_part_that_is_frozen_in_eval_mode_is_so_after_a_network_is_tried_out():
    network = build_model("resnet8", 10).train()
    network.layer1.eval()
    before = [module.training for module in network.modules()]
    try_out(network, 10, 32)
    assert [module.training for module in network.modules()] == before and len(set(before)) == 2


def test_a_whole_network_can_be_saved_and_read():
    model = build_model("resnet8", 10).eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(images(32)).logits, model(images(32)).logits)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
@torch.no_grad()
def test_imagenet_resnets_compute_what_torchvisions_compute(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name.lower())(num_classes=10).eval()
    ours = build_model(name, 10, "imagenet").eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(images(96)).logits, theirs(images(96)))


def test_resnet101_has_torchvisions_keys_and_loads_its_weights(monkeypatch):
    theirs = torchvision.models.resnet101().state_dict()
    weights = torchvision.models.ResNet101_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: theirs if self is weights.IMAGENET1K_V1 else None)
    ours = build_model("ResNet101", 1000, "imagenet", pretrained=True).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
