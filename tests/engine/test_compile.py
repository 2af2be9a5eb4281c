"""COMPILE: training with compiled networks gives the results of training without.

The default backend of torch.compile makes C++ and takes half a minute a network; `aot_eager` traces the same graphs.
"""

import json
from functools import partialmethod

import pytest
import torch

from mdistiller.models import build_model
from tests.engine.support import run, weights


@pytest.fixture
def traced(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("method", [  # maps of every stage; logits alone
    "EA-REVIEWKD", pytest.param("EA-KD", marks=pytest.mark.slow),
])
def test_a_compiled_run_follows_the_plain_one_and_saves_plain_names(tmp_path, traced, method):
    compiled = run(tmp_path / "compiled", method, "COMPILE", True)
    assert traced
    number = len(traced)
    plain = run(tmp_path / "plain", method)
    assert len(traced) == number
    curves = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
              for folder in (compiled, plain)]
    for mine, other in zip(*curves, strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert mine["test_top1"] == pytest.approx(other["test_top1"], abs=1.0)
    assert weights(compiled).keys() == weights(plain).keys()
    build_model("resnet8", 10).load_state_dict(weights(compiled, "student_latest.pth"))  # no wrapper's names
