"""Networks of timm, torchvision and users: one pass, features of the right shapes, their own input size."""

import copy
import pickle
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from mdistiller.errors import UserError
from mdistiller.models import AtInputSize, Output, build_model, timm_networks
from mdistiller.models.wrapped import evenly
from tests.models.support import images, shapes

timm = pytest.importorskip("timm")
CIFAR = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def wrapped(name, num_classes=7, **options):
    torch.manual_seed(0)
    return build_model(name, num_classes, **options).eval()


@pytest.mark.parametrize(
    "name, size, feats, pooled",
    [
        ("timm:test_vit", 160, [[64, 10, 10]] * 5, 64),  # six blocks: the patches, then four of them
        ("timm:test_resnet", 64, [[32, 32, 32], [32, 16, 16], [48, 8, 8], [192, 4, 4], [96, 2, 2]], 96),
        ("timm:test_convnext", 64, [[24, 16, 16], [24, 16, 16], [32, 8, 8], [48, 4, 4], [64, 2, 2]], 64),
        ("timm:test_efficientnet", 64, [[16, 32, 32], [24, 16, 16], [32, 8, 8], [48, 4, 4], [64, 2, 2]], 256),
        ("torchvision:resnet18", 64, [[64, 32, 32], [64, 16, 16], [128, 8, 8], [256, 4, 4], [512, 2, 2]], 512),
        ("torchvision:mnasnet0_5", 64, [[8, 32, 32], [16, 16, 16], [24, 8, 8], [48, 4, 4], [1280, 2, 2]], 1280),
        ("torchvision:regnet_x_400mf", 64, [[32, 32, 32], [32, 16, 16], [64, 8, 8], [160, 4, 4], [400, 2, 2]], 400),
        ("torchvision:swin_t", 64, [[96, 16, 16], [96, 16, 16], [192, 8, 8], [384, 4, 4], [768, 2, 2]], 768),
        ("torchvision:squeezenet1_1", 64, [[64, 31, 31], [128, 15, 15], [256, 7, 7], [512, 3, 3]], 512),
    ],
)
def test_features_are_the_stem_and_one_map_per_stage(name, size, feats, pooled):
    logits, features = wrapped(name)(images(size))
    assert shapes(features["feats"]) == shapes(features["preact_feats"]) == [[2, *shape] for shape in feats]
    assert features["pooled_feat"].shape == (2, pooled) and logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_logits_are_the_librarys_and_the_classifiers_of_the_pooled_features_in_one_pass(name):
    network, image = wrapped(name), images(160)
    calls = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    logits, features = network(image)
    assert len(calls) == 1
    torch.testing.assert_close(logits, network.inner(image))
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(logits, classifier(features["pooled_feat"]))


def test_gradients_reach_every_weight_through_the_features_and_running_statistics_move_once():
    network, image = wrapped("timm:test_resnet").train(), images(64)
    twin = copy.deepcopy(network.inner)
    features = network(image).features
    twin(image)
    assert all(torch.equal(a, b) for a, b in zip(network.inner.buffers(), twin.buffers(), strict=True))
    (features["feats"][-1].sum() + features["pooled_feat"].sum()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == ["inner.fc.weight", "inner.fc.bias"]


def test_tokens_become_maps_in_row_order():
    network = wrapped("timm:test_vit", image_size=32)  # 2 x 2 patches and a class token
    block, seen = network.inner.blocks[-1], []
    block.register_forward_hook(lambda module, args, output: seen.append(output))
    last = network(images(32)).features["feats"][-1]
    tokens = seen[0][:, -4:]
    torch.testing.assert_close(last, torch.stack([tokens[:, :2], tokens[:, 2:]], 1).permute(0, 3, 1, 2))


def test_torchvisions_transformer_gives_maps_without_the_class_token():
    torch.manual_seed(0)
    network, seen = build_model("torchvision:vit_b_32", 3, image_size=64).eval(), []
    network.inner.encoder.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    features = network(images(64)).features
    assert shapes(features["feats"]) == [[2, 768, 2, 2]] * 5 and features["pooled_feat"].shape == (2, 768)
    tokens = seen[0][:, -4:]  # behind that of the class
    torch.testing.assert_close(features["feats"][-1], tokens.unflatten(1, (2, 2)).permute(0, 3, 1, 2))


def test_maps_of_images_that_are_not_square_keep_their_height_and_width():
    maps = [wrapped(name)(torch.zeros(1, 3, 64, 96)).features["feats"][-1]
            for name in ("torchvision:swin_t", "torchvision:resnet18", "timm:test_resnet")]
    assert shapes(maps) == [[1, 768, 2, 3], [1, 512, 2, 3], [1, 96, 2, 3]]


def test_four_evenly_spaced_blocks_give_the_features():
    assert [evenly(12), evenly(6), evenly(4), evenly(2)] == [[2, 5, 8, 11], [0, 2, 3, 5], [0, 1, 2, 3], [0, 1]]


def test_a_wrapped_network_keeps_the_librarys_state_dict():
    theirs = timm.create_model("test_resnet", num_classes=7)
    once = build_model("timm:test_resnet", 7)
    twice = AtInputSize(build_model("timm:test_resnet", 7), 64, CIFAR, CIFAR)
    holder = nn.Module()
    holder.student, holder.head = twice, nn.Linear(2, 2)
    assert list(once.state_dict()) == list(twice.state_dict()) == list(theirs.state_dict())
    ours = {key.removeprefix("student.") for key in holder.state_dict()}
    assert ours == {*theirs.state_dict(), "head.weight", "head.bias"}
    for target in (once, twice):
        target.load_state_dict(theirs.state_dict())
        assert all(torch.equal(value, target.state_dict()[key]) for key, value in theirs.state_dict().items())
    state = {f"student.{key}": value for key, value in theirs.state_dict().items()}
    assert not holder.load_state_dict(state, strict=False).unexpected_keys
    with pytest.raises(RuntimeError, match="Unexpected"):
        twice.load_state_dict({**theirs.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing"):
        twice.load_state_dict(dict(list(theirs.state_dict().items())[1:]))


def test_copies_are_independent_and_pickles_can_be_read():
    network = AtInputSize(wrapped("timm:test_vit"), 160, CIFAR, CIFAR).eval()
    twin = copy.deepcopy(network)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not twin(images(64)).features["feats"][0].any() and network(images(64)).features["feats"][0].any()
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(again(images(64)).logits, network(images(64)).logits)


# --- its own size and normalisation ---------------------------------------------------------------------------------


class Seen(nn.Module):
    """Records its input image."""

    def forward(self, image):
        self.image = image
        return Output(image.mean((2, 3)), {})


def normalised(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_images_reach_the_network_in_its_own_normalisation():
    pixels, own = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ((0.5, 0.4, 0.3), (0.2, 0.5, 1.0))
    inner = Seen()
    AtInputSize(inner, None, CIFAR, own)(normalised(pixels, *CIFAR))
    torch.testing.assert_close(inner.image, normalised(pixels, *own))


def test_images_are_resized_as_timms_evaluation_resizes_them():
    """timm resizes 8-bit PIL images, so ours may differ from its by the rounding of two passes."""
    to_tensor = torchvision.transforms.functional.to_tensor
    coarse = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels = (F.interpolate(coarse, (64, 64), mode="bilinear")[0] * 255).to(torch.uint8)
    picture = torchvision.transforms.functional.to_pil_image(pixels)
    for size in (224, 40):
        expected = to_tensor(picture.resize((size, size), resample=3))  # bicubic
        inner = Seen()
        AtInputSize(inner, size, CIFAR, ((0.0,) * 3, (1.0,) * 3))(normalised(to_tensor(picture), *CIFAR)[None])
        assert inner.image.shape == (1, 3, size, size)
        assert (inner.image[0] - expected).abs().max() <= 1.5 / 255


def test_resized_pixels_stay_between_0_and_255():
    inner = Seen()
    checkers = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    AtInputSize(inner, 56, CIFAR, ((0.0,) * 3, (1.0,) * 3))(normalised(checkers[0], *CIFAR)[None])
    assert inner.image.min() == 0 and inner.image.max() == 1  # bicubic overshoots on both sides


def test_conversion_keeps_blank_images_and_float64():
    inner = Seen()
    AtInputSize(inner, 30, CIFAR, CIFAR).double()(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert inner.image.dtype == torch.float64
    torch.testing.assert_close(inner.image, torch.zeros(1, 3, 30, 30, dtype=torch.float64), atol=1e-7, rtol=0)


@torch.no_grad()
def test_methods_reach_the_wrapped_network():
    network = build_model("resnet8", 7).eval()
    outside = AtInputSize(network, 32, CIFAR, ((0.5,) * 3, (0.5,) * 3))
    assert outside.get_stage_channels() == network.get_stage_channels() and outside.stage_kind == "after_relu"
    assert outside.get_bn_before_relu() == network.get_bn_before_relu()
    x = image = images(16)
    for stage in outside.stages():
        x = stage(x)
    torch.testing.assert_close(outside.head(x), outside(image).logits)
    assert not hasattr(AtInputSize(Seen(), 8, CIFAR, CIFAR), "stages")


def test_attributes_of_the_library_are_not_mistaken_for_ours():
    network = AtInputSize(wrapped("timm:test_convnext"), 32, CIFAR, CIFAR)
    assert hasattr(network.inner.inner, "stages") and hasattr(network.inner.inner, "head")
    assert not hasattr(network, "stages") and not hasattr(network, "head")


# --- names, weights, errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, fragments",
    [
        ("timm:test_vitt", {}, ["test_vit"]),
        ("timm:test_vit.nothing", {}, ["no weights", "test_vit.r160_in1k"]),
        ("timm:test_resnet", {"colour": "red"}, ["cannot be built", "colour"]),
        ("torchvision:resnet19", {}, ["resnet18"]),
        ("torchvision:resnet18", {"colour": "red"}, ["cannot be built", "colour"]),
        ("keras:resnet18", {}, ["timm:<name>", "torchvision:<name>", "<file>.py:<class>"]),
        ("nowhere.py:Net", {}, ["nowhere.py", "no such file"]),
    ],
)
def test_a_network_that_cannot_be_built_is_explained_in_one_line(name, options, fragments):
    with pytest.raises(UserError) as caught:
        build_model(name, 7, **options)
    assert "\n" not in str(caught.value) and all(fragment in str(caught.value) for fragment in fragments)


def test_weights_that_cannot_be_downloaded_give_an_error_with_the_cache_folder(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no server is there
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match="timm:test_vit cannot be fetched .*models--timm--test_vit"):
        build_model("timm:test_vit", 7, pretrained=True)

    def unreachable(*_, **__):
        raise torchvision.models._api.load_state_dict_from_url.__globals__["URLError"]("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(UserError, match="torchvision:resnet18 cannot be fetched .*no network.*checkpoints"):
        build_model("torchvision:resnet18", 7, pretrained=True)


def test_a_server_that_answers_with_an_error_is_there_and_a_model_without_weights_asks_none(monkeypatch):
    def refused(request, timeout):
        raise HTTPError(request.full_url, 403, "Forbidden", {}, None)

    monkeypatch.setattr(timm_networks, "urlopen", refused)
    settings = SimpleNamespace(has_weights=True, hf_hub_id="nobody/nothing", hf_hub_filename=None)
    assert timm_networks._weights("mine", settings) == {}
    settings.has_weights = False
    with pytest.raises(UserError, match="timm has no pretrained weights for 'mine': use your own checkpoint"):
        timm_networks._weights("mine", settings)


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("what", ["nothing", "a page", "half", "code"])
@pytest.mark.parametrize("name", ["torchvision:resnet18", "ResNet18"])
def test_another_file_in_the_place_of_torchvisions_weights_is_named_and_not_read(what, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    place = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(Evil(tmp_path / "harmed") if what == "code" else {"a": torch.ones(9)}, place)
    content = {"nothing": b"", "a page": b"<html>", "half": place.read_bytes()[:500], "code": place.read_bytes()}[what]
    place.write_bytes(content)
    words = rf"{place.name}: its SHA-256 begins with [0-9a-f]{{8}}, expected f37072fd"
    with pytest.raises(UserError, match=words) as error:
        build_model(name, 1000, family="imagenet", pretrained=True)
    assert "\n" not in str(error.value) and not (tmp_path / "harmed").exists()


def test_cached_timm_weights_are_loaded_without_the_network_and_other_classes_get_a_new_head(monkeypatch, tmp_path):
    import huggingface_hub
    from safetensors.torch import save_file

    theirs = timm.create_model("test_resnet")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(tmp_path / file))
    same, other = (build_model("timm:test_resnet", classes, pretrained=True) for classes in (1000, 7))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert not same.new_head and other.new_head and other.state_dict()["fc.weight"].shape == (7, 96)
    assert torch.equal(other.state_dict()["layer1.0.conv1.weight"], theirs.state_dict()["layer1.0.conv1.weight"])


@pytest.mark.parametrize("name, head", [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("googlenet", "fc"),
                                        ("regnet_x_400mf", "fc")])  # the last one has weights of two versions
def test_torchvisions_weights_are_loaded_and_other_classes_get_a_new_head(monkeypatch, name, head):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, **options).state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict",
                        lambda self, **_: theirs if self.name == "IMAGENET1K_V1" else None)
    same = build_model(f"torchvision:{name}", 1000, pretrained=True)
    other = build_model(f"torchvision:{name}", 7, pretrained=True)
    assert not same.new_head and other.new_head
    assert all(torch.equal(value, theirs[key]) for key, value in same.state_dict().items())
    assert other.state_dict()[f"{head}.weight"].shape[0] == 7
    assert all(torch.equal(v, theirs[k]) for k, v in other.state_dict().items() if not k.startswith(head))
    assert other.eval()(images(64)).logits.shape == (2, 7)


NETWORKS = """
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.layers(x)

class Pair(Plain):
    def forward(self, x):
        return self.layers(x), {"pooled_feat": self.layers[1](self.layers[0](x))}

class Listing(Plain):
    def forward(self, x):
        return [self.layers(x)]
"""


@pytest.fixture
def networks(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORKS)
    return f"{tmp_path}/nets.py"


def test_a_user_class_needs_no_registration_and_may_return_only_logits(networks):
    network = build_model(f"{networks}:Plain", 7, width=5)
    output = network(images(8))
    assert isinstance(output, Output) and output.logits.shape == (2, 7) and output.features == {}
    assert next(iter(network.state_dict())) == "layers.1.weight"
    assert type(build_model(f"{networks}:Plain", 7)) is type(network)
    with pytest.raises(UserError, match="reads features\\['feats'\\].*logits only"):
        output.features["feats"]
    pooled = build_model(f"{networks}:Pair", 7)(images(8)).features["pooled_feat"]
    assert pooled.shape == (2, 4)
    with pytest.raises(UserError, match="Listing returns list; expected logits"):
        build_model(f"{networks}:Listing", 7)(images(8))


def test_a_file_without_the_class_or_with_a_mistake_is_named(networks, tmp_path):
    with pytest.raises(UserError, match="nets.py has no Plan; it has .*Plain"):
        build_model(f"{networks}:Plan", 7)
    (tmp_path / "wrong.py").write_text("import no_such_module\n")
    with pytest.raises(UserError, match="wrong.py:1: cannot be imported: ModuleNotFoundError: No module"):
        build_model(f"{tmp_path}/wrong.py:Net", 7)
    with pytest.raises(UserError, match="no pretrained weights"):
        build_model(f"{networks}:Plain", 7, pretrained=True)


@torch.no_grad()
def test_the_features_of_a_compiled_network_are_the_same():
    network = AtInputSize(wrapped("timm:test_vit", image_size=32), 32, CIFAR, CIFAR).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=torch.__version__ >= (2, 5))
    one, other = network(images(16)), compiled(images(16))
    torch.testing.assert_close(other.logits, one.logits)
    for ours, theirs in zip(other.features["feats"], one.features["feats"], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_autocast_keeps_the_conversion_in_full_precision():
    inner = Seen()
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        AtInputSize(inner, 16, CIFAR, CIFAR)(normalised(pixels, *CIFAR))
    expected = F.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(inner.image, normalised(expected[0], *CIFAR)[None])
