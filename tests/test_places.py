"""Shipped configs and teachers are found from any folder."""

import ast
import subprocess
from pathlib import Path

import pytest

from mdistiller.config import load_cfg
from mdistiller.places import CHECKOUT, find_config
from tests.forked import run_tool

CONFIG = Path("digits/ea_kd/res20_res8.yaml")


@pytest.mark.parametrize("name", [CONFIG, Path("configs") / CONFIG, CHECKOUT / "configs" / CONFIG])
def test_a_shipped_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_cfg(name).DISTILLER.TYPE == "EA-KD"


def test_a_file_of_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CONFIG.parent.mkdir(parents=True)
    CONFIG.write_text("DISTILLER: {TYPE: KD}\n")
    assert find_config(CONFIG) == CONFIG and load_cfg(CONFIG).DISTILLER.TYPE == "KD"
    assert find_config("no/such.yaml") == Path("no/such.yaml")


def test_configs_are_listed_and_copied_with_their_base_files(tmp_path):
    done = run_tool("configs", ["digits/", "ea_kd/"], tmp_path)
    assert done.stdout.split() == [str(CONFIG)], done.stderr
    for _ in range(2):  # the second time the files already exist and are equal
        done = run_tool("configs", ["digits/ea_kd/", "--copy", "mine"], tmp_path)
        assert done.returncode == 0 and "6 files in mine" in done.stdout, done.stdout + done.stderr
    assert load_cfg(tmp_path / "mine" / CONFIG) == load_cfg(CONFIG)


def test_the_wheel_contains_the_teachers_of_the_project_and_no_others():
    (names,) = [ast.literal_eval(node.value) for node in ast.parse((CHECKOUT / "setup.py").read_text()).body
                if isinstance(node, ast.Assign) and node.targets[0].id == "TEACHERS"]
    tracked = subprocess.run(["git", "ls-files", "checkpoints/*.pth"], cwd=CHECKOUT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git checkout")
    assert {f"checkpoints/{name}.pth" for name in names} == set(tracked.stdout.split())
