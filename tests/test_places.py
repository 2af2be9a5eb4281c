"""Shipped configs and teachers are found from any folder."""

import ast
import subprocess
from pathlib import Path

import pytest

from mdistiller.config import load_cfg
from mdistiller.errors import UserError
from mdistiller.places import CHECKOUT, find_config
from mdistiller.runs.training import Training
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
    assert find_config(tmp_path) == tmp_path  # a folder is for its reader to refuse


CIFAR, PAIR = "configs/cifar100", "res32x4_res8x4.yaml"
MISTYPED = {  # names that are no files here: the only config, or the first, that is offered instead
    "configs/digits/kd/res20_res9.yaml": "configs/digits/kd/res20_res8.yaml",
    "digits/kd/res20_res8.yml": "configs/digits/kd/res20_res8.yaml",
    "configs/digits/kd/res20_res8": "configs/digits/kd/res20_res8.yaml",
    "configs/imagenet/r34_r18/dkd.yaml": "configs/imagenet/dkd/r34_r18.yaml",  # as in mdistiller
    "configs/cifar100/dkd/wrn40_2_wrn_40_1.yaml": f"{CIFAR}/dkd/wrn40_2_wrn40_1.yaml",
    "configs/cifar100/kd.yaml": f"{CIFAR}/kd/{PAIR}",
    "kd/resnet32x4_resnet8x4.yaml": f"{CIFAR}/kd/{PAIR}",  # as in its forks
    f"configs/cifar100/KD/{PAIR}": f"{CIFAR}/kd/{PAIR}",
    f"{CIFAR}/MLKD/{PAIR}": f"{CIFAR}/mld/{PAIR}",
    f"configs/cifar100/ours/{PAIR}": f"{CIFAR}/mld/{PAIR}",  # as in MLD's code, and the following in EA-KD's
    "configs/cifar100/EA/mld+ls.yaml": f"{CIFAR}/ea_mld_ls/{PAIR}",
    "configs/imagenet/r34_r18/EA/kd.yaml": "configs/imagenet/ea_kd/r34_r18.yaml",
    "configs/imagenet/r34_r18/EA/dkd+LS.yaml": "configs/imagenet/ea_dkd_ls/r34_r18.yaml",
    "mine/vgg13_vgg9.yaml": "mine/vgg13_vgg8.yml",
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_name_that_is_no_config_is_refused_with_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/vgg13_vgg8.yml").touch()
    for read in (load_cfg, lambda path: Training(path).path):
        with pytest.raises(UserError) as caught:
            read(name)
        assert f"{caught.value},".startswith(f"{name}: no such config file; nearest: {MISTYPED[name]},")


def test_a_name_like_no_config_is_refused_with_the_command_that_lists_them():
    for name in ("my/own.yaml", "x" * 5000, "a\0b", ""):
        with pytest.raises(UserError, match="no such config file; tools/configs.py lists those that come along"):
            find_config(name)


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
