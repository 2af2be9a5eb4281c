"""Expected structure of every network (tests/golden/models/*.json), and recipes for known weights."""

import json
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

from mdistiller.models import build_model
from tests.golden_files import GOLDEN


def _read(file):
    return json.loads((GOLDEN / "models" / file).read_text())


EXPECTED = _read("cifar_state_dicts.json")["models"] | _read("imagenet_state_dicts.json")["models"]
MANIFEST = _read("manifest.json")
SMALL = [name for name, entry in EXPECTED.items() if entry["dataset"] != "imagenet"]
every_network = pytest.mark.parametrize("name", EXPECTED)
every_small_network = pytest.mark.parametrize("name", SMALL)


@cache
def _built(name, seed):
    torch.manual_seed(seed)
    entry = EXPECTED[name]
    return build_model(entry["registry_name"], entry["num_classes"], family=entry["dataset"])


def network(name, seed=0):
    """The network of an entry of EXPECTED, with its number of classes: a copy, which is cheaper than building it."""
    return deepcopy(_built(name, seed))


def images(size, batch=2, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def image_of(name, batch=2):
    """Small images: 32x32 for the small networks; 64x64 is enough to run those for ImageNet."""
    return images(64 if EXPECTED[name]["dataset"] == "imagenet" else 32, batch)


def shapes(maps):
    return [list(feature.shape) for feature in maps]


def norms(model):
    """Batch norms in state-dict order."""
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def _value(recipe, key, tensor, seed):
    draw = np.random.RandomState(seed).standard_normal(tuple(tensor.shape))
    if recipe == "A":
        draw = (draw * 0.05).astype(np.float32)
        return np.abs(draw) + np.float32(0.5) if key.endswith("running_var") else draw
    if tensor.ndim >= 2:
        return draw * np.sqrt(2 / np.prod(tensor.shape[1:]))
    if key.endswith("running_var"):
        return 1 + np.abs(0.05 * draw)
    return 1 + 0.05 * draw if key.endswith(".weight") else 0.05 * draw


def filled(model, recipe, base=1000):
    """The model with the weights of a recipe of the manifest, "A" or "B", loaded strictly."""
    state = {}
    for index, (key, tensor) in enumerate(model.state_dict().items()):
        counter = key.endswith("num_batches_tracked")
        value = 0 if counter else _value(recipe, key, tensor, base + index)
        state[key] = torch.as_tensor(value).to(tensor.dtype)
    model.load_state_dict(state)
    return model


def recipe_images(seed, batch, size):
    draw = np.random.RandomState(seed).standard_normal((batch, 3, size, size))
    return torch.from_numpy(draw.astype(np.float32))
