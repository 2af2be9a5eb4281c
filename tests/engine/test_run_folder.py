"""Records in a run folder, as reports read them."""

import importlib.util
import json
import os
import subprocess

import pytest

from mdistiller.config import load_cfg
from mdistiller.config.stated import stated
from mdistiller.engine import run_folder
from mdistiller.engine.run_folder import FREE, RunFolder, commit, differences, overridden
from mdistiller.engine.run_state import summary_line
from mdistiller.errors import UserError
from mdistiller.runs.matching import fit
from mdistiller.runs.paper import load_runs
from mdistiller.runs.records import counts, read_run
from tests.engine.support import REPOSITORY, run

PAPER = {(run.config, run.overrides): run for run in load_runs() if run.config.endswith("/res32x4_res8x4.yaml")}


@pytest.fixture
def described(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "commit", lambda: None)

    def describe(path, opts):
        RunFolder(tmp_path).describe(load_cfg(path, opts))
        return read_run(tmp_path)

    return describe


def test_changed_settings_are_recorded_for_the_nodes_that_the_run_reads():
    cfg = load_cfg(None, ["DISTILLER.TYPE", "DKD", "DKD.BETA", 2, "DKD.ALPHA", 1, "OFD.CONNECTOR.KERNEL_SIZE", 3,
                          "KD.LOSS.KD_WEIGHT", 2, "SOLVER.LR", 0.1])
    assert overridden(cfg) == {"DISTILLER.TYPE": "DKD", "DKD.BETA": 2.0, "KD.LOSS.KD_WEIGHT": 2.0, "SOLVER.LR": 0.1}


@pytest.mark.parametrize(("config", "overrides"), PAPER)
def test_a_run_folder_matches_only_its_own_file_and_overrides(described, config, overrides):
    record = described(REPOSITORY / config, overrides)
    fitting = [(file, own) for file, own in PAPER if fit(record, stated(REPOSITORY / file, own)) == ()]
    assert fitting == [(config, overrides)]
    recorded = json.loads((record.path / "run.json").read_text())["overridden"]
    assert recorded["DISTILLER.TYPE"] == PAPER[config, overrides].settings["DISTILLER.TYPE"]


@pytest.mark.parametrize(("opts", "expected"), [
    (["SOLVER.EPOCHS=2", "DATASET.TRAIN_FRACTION=0.5"], ("DATASET.TRAIN_FRACTION", "SOLVER.EPOCHS")),
    (["CTKD.T_END=30.0"], None),  # declared only by the method's class
    (["KD.TEMPERATURE=9.0"], ()),  # of a node that the run does not read
    (["DEVICE=cpu", "EXPERIMENT.SEED=7", "LOG.PREFIX=elsewhere", "TEACHER_CACHE.DIR=there", "DISTILLER.t=5"], ()),
])
def test_differences_from_a_protocol_are_listed(described, opts, expected):
    path = REPOSITORY / "configs/cifar100/ctkd/res32x4_res8x4.yaml"
    assert fit(described(path, opts), stated(path)) == expected


def test_what_a_run_may_change_when_it_continues_makes_no_other_experiment():
    assert not {key for key in FREE if counts(key, "EA-KD")}


def test_every_session_records_its_versions_and_another_teacher_is_refused(tmp_path):
    cfg, folder = load_cfg(None), RunFolder(tmp_path)
    for _ in range(2):
        folder.describe(cfg, teacher_sha256="a" * 64)
    sessions = folder.read_json("run.json")["sessions"]
    assert len(sessions) == 2 and all({"commit", "versions", "python"} <= session.keys() for session in sessions)
    with pytest.raises(UserError, match="another teacher"):
        folder.check_same(teacher_sha256="b" * 64)
    folder.check_same(teacher_sha256="a" * 64)


def test_a_run_that_goes_on_with_another_version_says_so_and_keeps_what_the_first_one_was(tmp_path, monkeypatch):
    cfg, folder = load_cfg(None), RunFolder(tmp_path)
    monkeypatch.setattr(run_folder, "commit", lambda: "1" * 40)
    monkeypatch.setattr(run_folder, "versions", lambda: {"torch": "2.8.0"})
    folder.describe(cfg, device="cpu")
    assert folder.changed_software() == []
    record = folder.read_json("run.json")
    for name in ("commit", "versions", "python"):  # as the first versions wrote it, beside the sessions alone
        del record["sessions"][0][name]
    folder.write_json("run.json", record)
    monkeypatch.setattr(run_folder, "commit", lambda: "2" * 40)
    monkeypatch.setattr(run_folder, "versions", lambda: {"torch": "2.9.0", "timm": "1.0"})
    folder.describe(cfg, device="cuda")
    sessions = folder.read_json("run.json")["sessions"]
    assert [(session["commit"][0], session["versions"]["torch"]) for session in sessions] == [
        ("1", "2.8.0"), ("2", "2.9.0")]
    assert folder.changed_software() == [
        f"commit {'1' * 40} (now {'2' * 40})", "device cpu (now cuda)", "torch 2.8.0 (now 2.9.0)"]


@pytest.mark.parametrize("odd", ["a text", None, {"versions": "2.8", "commit": 3}, {}])
def test_a_session_that_says_nothing_of_its_software_is_no_other_version(tmp_path, odd):
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"sessions": [odd]})
    folder.describe(load_cfg(None))
    assert folder.changed_software() == []


def test_the_file_of_the_teacher_may_lie_elsewhere_but_is_not_exchanged_for_random_weights():
    there, elsewhere, found, none = ({"DISTILLER.TEACHER_CHECKPOINT": path} for path in ("a/t.pth", "b/u.pth", None,
                                                                                         "random"))
    assert not differences(there, elsewhere) and not differences(found, there)
    assert "'a/t.pth' there, 'random' now" in differences(there, none) and differences(none, found)


def test_the_commit_is_recorded_only_in_a_checkout_of_this_project(tmp_path, monkeypatch):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(run_folder, "CHECKOUT", tmp_path)
    assert len(commit()) == 40
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as in a container with the checkout of its host
    assert len(commit()) == 40
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(run_folder, "CHECKOUT", inside)
    assert commit() is None


def test_the_commit_is_recorded_whatever_the_folder_of_the_checkout_is_called(tmp_path, monkeypatch):
    checkout = tmp_path / os.fsdecode(b"caf\xe9 ")  # Latin-1, with a space at its end
    try:
        checkout.mkdir()
    except OSError:
        pytest.skip("this file system knows only names in UTF-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", checkout, *words], check=True)
    monkeypatch.setattr(run_folder, "CHECKOUT", checkout)
    assert len(commit()) == 40


def test_damaged_lines_of_metrics_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"epoch": 2}\n')
    assert RunFolder(tmp_path).keep_metrics_before(2) == [{"epoch": 1}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


def test_the_last_line_of_a_run_has_two_decimals():
    summary = {"headline": "ap", "last_ap": 45.21738465, "best_ap": 46.0, "best_epoch": 3, "wall_seconds": 91.0251}
    assert summary_line(summary) == '{"last_ap": 45.22, "best_ap": 46.0, "best_epoch": 3, "wall_seconds": 91.03}'


@pytest.mark.parametrize("module, library", [("tensorboard", "tensorboard"), ("sklearn", "scikit-learn")])
def test_a_library_that_is_missing_is_told_in_one_line_before_there_is_a_folder(module, library, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(UserError, match=f"needs {library}, which is missing or incomplete here: pip install {library}"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
