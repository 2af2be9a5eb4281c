"""Records of versions in which a method trained otherwise: a key that came later, and defaults that have changed."""

import json

import pytest
import yaml

from mdistiller.config import load_cfg
from mdistiller.config.former import CHANGED, unnamed
from mdistiller.config.loading import method_keys
from mdistiller.config.stated import stated
from mdistiller.engine.reopen import read_config
from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.runs.matching import fit
from mdistiller.runs.records import group_runs, read_run

SDD = "configs/digits/sdd/res20_res8.yaml"


def test_the_defaults_of_reports_are_those_of_the_methods():
    keys = method_keys()
    assert {name: keys[name].default for name in CHANGED} == CHANGED
    assert unnamed({"SDD.LOSS": "dkd", "DKD.WARMUP": 20}).keys() <= CHANGED.keys()


def described(tmp_path, *opts):
    """The folder of a run as this version begins it."""
    cfg = load_cfg(SDD, ["LOG.PREFIX", str(tmp_path), *opts])
    folder = RunFolder.open(cfg, resume=False)
    folder.path.mkdir(parents=True)
    folder.describe(cfg)
    return folder, cfg


def without_the_key(folder, *keys):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("CLIP_NORM", *keys):
        del config["SDD"][key]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_from_before_the_gradients_were_clipped_continues_without_clipping_alone(tmp_path):
    folder, cfg = described(tmp_path)
    without_the_key(folder)
    with pytest.raises(UserError, match=r"SDD.CLIP_NORM \(0.0 there, 40.0 now\); set them as there to continue it"):
        RunFolder.open(cfg, resume=True)
    assert read_config(folder.path).SDD.CLIP_NORM == 0.0
    assert read_config(described(tmp_path / "today's")[0].path).SDD.CLIP_NORM == 40.0


def test_a_run_from_before_the_gradients_were_clipped_is_one_of_runs_without_clipping(tmp_path):
    said = {"older": [], "unclipped": ["SDD.CLIP_NORM=0.0", "EXPERIMENT.SEED=1"], "today's": ["EXPERIMENT.SEED=2"]}
    folders = {name: described(tmp_path / name, *opts)[0] for name, opts in said.items()}
    without_the_key(folders["older"])
    runs = {name: read_run(folder.path) for name, folder in folders.items()}
    assert [[run.seed for run in group] for group in group_runs(runs.values())] == [[0, 1], [2]]
    fitting = {opts: [name for name, run in runs.items() if fit(run, stated(SDD, opts)) == ()]
               for opts in ((), ("SDD.CLIP_NORM=0.0",))}
    assert fitting == {(): ["today's"], ("SDD.CLIP_NORM=0.0",): ["older", "unclipped"]}


def test_a_run_from_before_the_warm_up_had_a_key_warmed_up_as_dkd_says(tmp_path):
    as_dkd = ["SDD.LOSS", "dkd", "SDD.CLIP_NORM", 0.0, "DKD.WARMUP", 15]
    folders = {name: described(tmp_path / name, *as_dkd, *opts)[0] for name, opts in {
        "older": [], "the same": ["SDD.WARMUP", 15, "EXPERIMENT.SEED", 1], "today's": ["EXPERIMENT.SEED", 2]}.items()}
    without_the_key(folders["older"], "WARMUP")
    assert read_config(folders["older"].path).SDD.WARMUP == 15
    runs = [read_run(folder.path) for folder in folders.values()]
    assert [[run.seed for run in group] for group in group_runs(runs)] == [[0, 1], [2]]


def test_a_default_of_its_day_is_no_default_of_today(tmp_path):
    path = "configs/digits/wkd/res20_res8.yaml"
    cfg = load_cfg(path, ["WKD.SAMPLES", 50])
    RunFolder(tmp_path).describe(cfg)
    content = json.loads((tmp_path / "run.json").read_text())
    del content["overridden"]["WKD.SAMPLES"]  # 50 was its default
    (tmp_path / "run.json").write_text(json.dumps(content))
    run = read_run(tmp_path)
    assert fit(run, stated(path)) is None and fit(run, stated(path, ["WKD.SAMPLES=50"])) == ()
