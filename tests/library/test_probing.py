"""Which modules of a user's network give the features, and what their hooks leave behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.errors import UserError
from mdistiller.library.networks import adapt


class Tutorial(nn.Module):
    """PyTorch's first classifier, whose pooling runs twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc = nn.Linear(400, 10)
        self.fails = False

    def forward(self, x):
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        if self.fails:
            raise RuntimeError("out of memory")
        return self.fc(torch.flatten(x, 1))


class Attention(nn.Module):
    """Self-attention whose weights (B, 2, N, N) pass through a module."""

    def __init__(self):
        super().__init__()
        self.project, self.drop = nn.Linear(8, 24), nn.Dropout(0.1)

    def forward(self, x):
        query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.project(x).chunk(3, 2))
        return x + (self.drop((query @ key.mT).softmax(-1)) @ value).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(*(Attention() for _ in range(4)))
        self.token, self.head = nn.Parameter(torch.zeros(1, 1, 8)), nn.Linear(8, 10)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


class Pyramid(nn.Module):
    """Two convolutions, and between them attention across channels, whose weights (B, 2, 4, 4) look like a map."""

    def __init__(self):
        super().__init__()
        self.patch1, self.patch2 = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 4, 4)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, x):
        heads = self.patch1(x).reshape(len(x), 2, 4, 64)
        x = self.drop((heads @ heads.mT).softmax(-1)) @ heads
        return self.head(self.patch2(x.reshape(len(x), 8, 8, 8)).mean((2, 3)))


class Hourglass(nn.Module):
    """An encoder of three sizes, and a decoder behind it."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)])
        self.up, self.head = nn.ConvTranspose2d(4, 4, 4, 4), nn.Linear(4, 10)

    def forward(self, x):
        for module in self.down:
            x = module(x)
        return self.head(self.up(x).mean((2, 3)))


def images(network):
    return torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("network, levels, sizes", [
    (Tutorial, ["conv1", "conv2"], [28, 10]),
    (Transformer, ["patch", "blocks.0", "blocks.1", "blocks.2", "blocks.3"], [8] * 5),
    (Pyramid, ["patch1", "patch2"], [8, 2]),
    (Hourglass, ["down.0", "down.1", "down.2"], [16, 8, 4]),
])
def test_levels_are_maps_whose_sizes_fall(network, levels, sizes):
    tapped = adapt(network(), None, True, images)
    assert tapped.levels == levels
    assert [feat.shape[2] for feat in tapped(torch.zeros(2, 3, 32, 32)).features["feats"]] == sizes


def test_a_module_that_runs_twice_has_no_one_output():
    twice = r"^taps: pool of Tutorial runs twice in a pass; name a module that runs once$"
    with pytest.raises(UserError, match=twice):
        adapt(Tutorial(), ["pool", "conv2"], True, images)
    tapped = adapt(Tutorial(), ["conv2"], True, images)
    tapped.watch("conv2", tapped.inner.pool)  # as if it ran once where it was probed
    with pytest.raises(UserError, match=twice.replace("pool", "conv2")):
        tapped(images(None))


def test_a_pass_that_fails_leaves_nothing_to_the_next():
    tapped = adapt(Tutorial(), None, True, images)
    tapped.inner.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        tapped(images(None))
    tapped.inner.fails = False
    assert len(tapped(images(None)).features["feats"]) == 2


def test_a_network_compiled_without_its_hooks_is_named_as_such():
    tapped = adapt(Tutorial(), None, True, images)
    tapped.inner._compiled_call_impl = tapped.inner.forward  # what PyTorch calls after network.compile()
    tapped.inner.conv1._forward_hooks.clear()
    with pytest.raises(UserError, match=r"^taps: conv1 of Tutorial runs as compiled before .*torch.compiler.reset\(\)"):
        tapped(images(None))


def test_hooks_go_with_the_wrapper():
    network = Tutorial()
    for taps in (None, ["conv2"]):
        tapped = adapt(network, taps, True, images)
        assert any(module._forward_hooks for module in network.modules())
        del tapped
        assert not any(module._forward_hooks for module in network.modules())
