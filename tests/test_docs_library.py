"""The examples of docs/library.md and the script of the README run; each part of the page is a test."""

import importlib
import logging
import re
import socket

import pytest
import torch
from torch import nn

from tests.engine.support import REPOSITORY

PAGE = (REPOSITORY / "docs" / "library.md").read_text()
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD, *PARTS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
SECTIONS = {part.splitlines()[0]: CODE.findall(part) for part in PARTS}
TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
LIBRARIES = ("pytorch_lightning", "transformers", "accelerate")


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """An empty working folder, the environment of one torchrun process, and a fast compiler backend."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    logging.getLogger("mdistiller").handlers.clear()


@pytest.mark.parametrize("title", SECTIONS)
def test_each_part_of_the_page_runs_as_it_stands(title, quiet, monkeypatch):
    code = "\n".join(SECTIONS[title])
    for library in LIBRARIES:
        if f"import {library}" in code or f"from {library}" in code:
            pytest.importorskip(library)
            for name in TORCHRUN:  # with these, the libraries would join a process group
                monkeypatch.delenv(name, raising=False)
    if "fully_shard" in code and torch.__version__ < (2, 6):
        pytest.skip("this PyTorch has no fully_shard")
    namespace = {}
    exec(compile(CODE.findall(HEAD)[0], "docs/library.md", "exec"), namespace)
    for block in SECTIONS[title]:
        exec(compile(block, f"docs/library.md: {title}", "exec"), namespace)
    assert code


def test_the_script_of_the_readme_trains(quiet, capsys):
    (script,) = [text for text in CODE.findall((REPOSITORY / "README.md").read_text()) if "mdistiller.distill" in text]
    assert len(script.strip().splitlines()) == 12
    exec(compile(script, "README.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line[0] in "ERC"]
    assert len(losses) == 6 and all(loss == loss for loss in losses)
    assert importlib.import_module("mdistiller").methods()["CRD"]
