"""docs/own_data_and_models.md runs as written: its files, commands and Python code, in order."""

import re
import runpy
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from tests.engine.support import REPOSITORY

PAGE = REPOSITORY / "docs" / "own_data_and_models.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\S+\.\w+)\n")
SHORT = ["SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.BATCH_SIZE", "8", "DEVICE", "cpu"]


def draw(folder, generator):
    """Six training and two test images per class, of several sizes: noise around the class's colour."""
    for name, colour in (("cat", (200, 80, 40)), ("dog", (40, 80, 200))):
        for split, count in (("train", 6), ("val", 2)):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                shape = (60 + 10 * index, 80, 3)
                pixels = np.clip(generator.normal(colour, 30, shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.jpg")


def run_line(words, monkeypatch, short=SHORT):
    """`python tools/x.py ...` in this process; trainings are shortened."""
    assert words[0] == "python", words
    extra = short if words[1] == "tools/train.py" else []
    monkeypatch.setattr(sys, "argv", [*words[1:], *extra])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / words[1]), run_name="__main__")
    assert ended.value.code == 0, words


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "my_images", np.random.default_rng(0))
    kinds = []
    for kind, text in BLOCK.findall(PAGE.read_text()):
        named = NAME.match(text)
        if named:
            (tmp_path / named[1]).write_text(text)
        elif kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                run_line(shlex.split(line), monkeypatch)
        else:
            assert kind == "python"
            exec(compile(text, str(PAGE), "exec"), {})
        kinds.append(kind)
    assert kinds.count("bash") == 4 and kinds.count("python") == 2 and kinds.count("yaml") == 2
    assert capsys.readouterr().out.splitlines()[-1] in ("cat", "dog")
    runs = {path.name for path in (tmp_path / "output" / "distill").iterdir()}
    assert runs == {"teacher", "pets_s0", "features", "from_torchvision"}
