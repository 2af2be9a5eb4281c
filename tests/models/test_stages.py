"""Networks cut into stages, as function-consistent distillation needs them."""

import pytest
import torch

from mdistiller.models.base import with_stem
from tests.models.support import EXPECTED, every_network, image_of, network


def run(model, x):
    """Outputs of all stages."""
    outputs = []
    for stage in model.stages():
        x = stage(x)
        outputs.append(x)
    return outputs


@every_network
@torch.no_grad()
def test_stages_and_head_chained_give_the_ordinary_logits(name):
    model = network(name).eval()
    expected = model(image_of(name)).logits
    torch.testing.assert_close(model.head(run(model, image_of(name))[-1]), expected)


@every_network
@torch.no_grad()
def test_stages_do_not_change_their_input(name):
    """A feature is also used in losses and in layers of another network, so its tensor must not be changed."""
    model = network(name).eval()
    x = image_of(name)
    for stage in [*model.stages(), model.head]:
        before = x.clone()
        after = stage(x)
        assert torch.equal(x, before)
        x = after


KINDS = {
    "after_relu": ["resnet20", "resnet8x4", "ResNet18", "ResNet50", "ShuffleV2", "imagenet_ResNet18",
                   "imagenet_MobileNetV1"],
    "before_relu": ["vgg8", "vgg19", "MobileNetV2", "ShuffleV1", "tiny_MobileNetV2"],
    "before_bn": ["wrn_16_1", "wrn_40_2"],
}  # fmt: skip


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in KINDS.items() for name in names])
@torch.no_grad()
def test_stages_end_where_their_kind_says(kind, name):
    model = network(name).train()
    assert model.stage_kind == kind
    for output in run(model, image_of(name)):
        assert (output.min() >= 0) == (kind == "after_relu")


@pytest.mark.parametrize(
    "name, channels",
    [  # of the stage outputs, table "Stages" of the method
        ("resnet8x4", [32, 64, 128, 256]),
        ("ResNet50", [64, 256, 512, 1024, 2048]),
        ("wrn_40_2", [16, 32, 64, 128]),
        ("vgg13", [64, 128, 256, 512, 512]),
        ("MobileNetV2", [16, 12, 16, 48, 1280]),
        ("ShuffleV1", [24, 240, 480, 960]),
        ("ShuffleV2", [24, 116, 232, 1024]),
        ("imagenet_ResNet34", [64, 64, 128, 256, 512]),
        ("imagenet_MobileNetV1", [32, 128, 256, 512, 1024]),
    ],
)
@torch.no_grad()
def test_stages_have_the_channels_of_the_method(name, channels):
    assert [output.shape[1] for output in run(network(name).eval(), image_of(name))] == channels


@pytest.mark.parametrize("name", [name for name, entry in EXPECTED.items() if entry["preact_feats"]])
@torch.no_grad()
def test_inner_stages_are_the_features_of_that_kind(name):
    model = network(name).eval()
    features = with_stem(model(image_of(name))).features
    expected = features["preact_feats" if model.stage_kind == "before_relu" else "feats"]
    for level, output in enumerate(run(model, image_of(name))[1:-1], start=1):
        torch.testing.assert_close(output, expected[level])
