"""Promises that hold for every network: names, shapes, features, batch norm, memory formats and image sizes."""

import pytest
import torch

from mdistiller.models import Output, build_model
from mdistiller.models.base import with_stem
from tests.models.support import (
    EXPECTED,
    every_network,
    every_small_network,
    image_of,
    images,
    network,
    norms,
    shapes,
)


@every_network
def test_state_dict_has_the_published_keys_shapes_types_and_order(name):
    model = network(name)
    found = [[key, list(x.shape), str(x.dtype).removeprefix("torch.")] for key, x in model.state_dict().items()]
    assert found == EXPECTED[name]["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == EXPECTED[name]["num_parameters"]


@every_network
@torch.no_grad()
def test_features_have_the_published_shapes(name):
    entry = EXPECTED[name]
    model = network(name).eval()
    output = model(torch.zeros(entry["input"]))
    assert isinstance(output, Output)
    logits, features = output
    assert list(logits.shape) == entry["logits"]
    assert shapes(features["feats"]) == entry["feats"]
    assert list(features["pooled_feat"].shape) == entry["pooled_feat"][:2]
    if entry["preact_feats"] is None:
        assert "preact_feats" not in features
    else:
        assert shapes(features["preact_feats"]) == entry["preact_feats"]
    assert model.get_stage_channels() == [level.shape[1] for level in features["feats"]]


@every_network
def test_batch_norms_before_relu_are_the_published_ones(name):
    model, entry = network(name), EXPECTED[name]
    expected = entry["bn_before_relu"]
    if isinstance(expected, str):  # the reference has none here: it raises or lacks the method
        with pytest.raises(NotImplementedError, match="has no batch norm right before"):
            model.get_bn_before_relu()
        return
    names = {module: key for key, module in model.named_modules()}
    found = [names[norm] for norm in model.get_bn_before_relu()]
    channels = [norm.num_features for norm in model.get_bn_before_relu()]
    skipped = 1 if name.startswith("imagenet_ResNet") else 0  # the reference leaves out layer1; we do not
    assert (found[skipped:], channels[skipped:]) == (expected, entry["bn_before_relu_channels"])
    assert channels == model.get_stage_channels()[-len(channels) :]


@torch.no_grad()
def test_methods_see_the_stem_as_level_0_where_the_public_feats_lack_it():
    output = network("imagenet_MobileNetV1").eval()(images(64))
    features = with_stem(output).features
    assert [feat.shape[1] for feat in features["feats"]] == [32, 128, 256, 512, 1024]
    assert all(ours is theirs for ours, theirs in zip(features["feats"][1:], output.features["feats"], strict=True))
    assert features.keys() == {"feats", "preact_feats", "pooled_feat"} and len(features["preact_feats"]) == 5


@every_network
@torch.no_grad()
def test_a_training_step_runs_every_batch_norm_exactly_once(name):
    model = network(name).train()
    model(image_of(name))
    assert {norm.num_batches_tracked.item() for norm in norms(model)} == {1}


@pytest.mark.parametrize("name", [name for name, entry in EXPECTED.items() if entry["preact_feats"]])
@torch.no_grad()
def test_pre_activations_come_out_before_the_relu(name):
    features = with_stem(network(name).train()(image_of(name))).features
    is_wide, is_shuffled = name.startswith("wrn"), name == "ShuffleV2"
    for level, (feat, preact) in enumerate(zip(features["feats"], features["preact_feats"], strict=True)):
        if level == 0:
            assert feat is preact  # activated, except in a wrn, where both are raw
            assert (preact.min() < 0) == is_wide
            continue
        assert preact.min() < 0, "an in-place ReLU has overwritten it"
        if is_shuffled:  # the shuffle of two groups makes the two halves alternate
            half = preact.shape[1] // 2
            assert torch.equal(feat[:, ::2], preact[:, :half]) and torch.equal(feat[:, 1::2], preact[:, half:].relu())
        elif not is_wide:
            assert torch.equal(feat, preact.relu())


@every_small_network
@torch.no_grad()
def test_images_of_64_pixels_and_of_odd_sizes_are_accepted(name):
    model = network(name).eval()
    for size in (64, 37):
        logits, features = model(images(size, batch=1))
        assert logits.shape == (1, EXPECTED[name]["num_classes"])
        assert features["pooled_feat"].shape == (1, EXPECTED[name]["pooled_feat"][1])


@every_network
@torch.no_grad()
def test_channels_last_gives_the_same_logits(name):
    model = network(name).eval()
    expected = model(image_of(name, batch=1)).logits
    model.to(memory_format=torch.channels_last)
    found = model(image_of(name, batch=1).to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@every_network
def test_gradients_reach_every_parameter_and_every_feature(name):
    model = network(name).train()
    logits, features = model(image_of(name))
    for feature in features["feats"]:
        feature.retain_grad()
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in features["feats"])


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"])
def test_checkpoints_without_batch_counters_load_strictly(name):
    model = network(name)
    state = network(name, seed=1).state_dict()  # with its version metadata, so that PyTorch itself would refuse
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    model.load_state_dict(state)
    assert all(torch.equal(model.state_dict()[key], x) for key, x in state.items())
    counted = {key: x + 7 if key.endswith("num_batches_tracked") else x for key, x in model.state_dict().items()}
    model.load_state_dict(counted)  # those that are there are read
    assert all(torch.equal(model.state_dict()[key], x) for key, x in counted.items())


def test_a_checkpoint_without_a_weight_is_still_refused():
    state = network("resnet8").state_dict()
    del state["fc.weight"]
    with pytest.raises(RuntimeError, match="fc.weight"):
        network("resnet8").load_state_dict(state)


@every_small_network
def test_every_network_can_have_any_number_of_classes(name):
    entry = EXPECTED[name]
    model = build_model(entry["registry_name"], num_classes=3, family=entry["dataset"])
    assert model.eval()(images(32, batch=1)).logits.shape == (1, 3)


one_of_each_family = pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)


@one_of_each_family
@torch.no_grad()
def test_double_stays_double_and_autocast_agrees_with_float32(name):
    model = network(name).train()
    expected = model(images(32, batch=4)).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images(32, batch=4)).logits
    assert found.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits, and MobileNetV2's last batch norms see 16 values a channel
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.8
    assert model.double()(images(32).double()).logits.dtype == torch.float64


@one_of_each_family
@torch.no_grad()
def test_every_network_compiles_as_one_graph(name):
    model = network(name).eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image_of(name)).logits, model(image_of(name)).logits)
