"""Settings of files and overrides, read without the methods, agree with the complete configuration."""

from pathlib import Path

import pytest

from mdistiller.config import load_cfg
from mdistiller.config.stated import as_overrides, flatten, stated
from mdistiller.runs.matching import equal

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*_res8*.yaml"))]


@pytest.mark.parametrize("file", FILES)
def test_a_file_states_what_is_loaded_from_it(file):
    complete = flatten(load_cfg(CONFIGS / file))
    said = stated(CONFIGS / file)
    assert said and all(equal(complete[key], value) for key, value in said.items())


@pytest.mark.parametrize("opts", [
    ("DISTILLER.TYPE", "KD", "DISTILLER.EA", "1"),
    ("EXPERIMENT.LOGIT_STAND", "True"),
    ("DISTILLER.t", "2", "EA.UPPER_BOUND", "log_c"),
    ("EA.TEMPERATURE", "4", "DISTILLER.t", "2"),
    ("SOLVER.LR=1e-4", "SOLVER.EPOCHS", "3.0", "SOLVER.LR_DECAY_STAGES", "[1, 2]"),
    ("EXPERIMENT.TAG", "007", "DISTILLER.TEACHER_CHECKPOINT", "None", "KD.LOSS.KD_WEIGHT", "2"),
])
def test_overrides_mean_what_they_mean_to_a_run(opts):
    complete, default, said = flatten(load_cfg(None, opts)), flatten(load_cfg()), stated(None, opts)
    assert all(equal(complete[key], value) for key, value in said.items())
    changed = {key for key, value in complete.items() if not equal(value, default[key])}
    assert changed <= said.keys() | {"DISTILLER.EA"}
    assert stated(None, as_overrides(opts)) == said


def test_unknown_keys_of_known_nodes_are_refused_without_the_methods():
    with pytest.raises(ValueError, match="command line: unknown key SOLVER.EPOCS; nearest: SOLVER.EPOCHS"):
        stated(None, ["SOLVER.EPOCS", 2])
    with pytest.raises(ValueError, match="SOLVER.EPOCHS: expected int, found 'many'"):
        stated(None, ["SOLVER.EPOCHS", "many"])
    assert stated(None, ["SOMETHING.OF_A_METHOD", 2]) == {"SOMETHING.OF_A_METHOD": 2}


EA_FILE, EA_NODE = "DISTILLER: {TYPE: EA-KD}\n", "DISTILLER: {TYPE: KD, EA: 1}\n"
SAYS = [  # what a file says, what is said later, and the method and LS that both mean
    (EA_FILE, ("DISTILLER.EA", "False"), "KD", False),
    (EA_FILE, ("DISTILLER.EA", 0), "KD", False),
    (EA_NODE, ("DISTILLER.EA", "0"), "KD", False),
    (EA_FILE, ("DISTILLER.EA", "0", "DISTILLER.EA", "1"), "EA-KD", False),
    (EA_FILE, ("DISTILLER.EA", "0", "DISTILLER.TYPE", "ea-dkd"), "EA-DKD", False),
    ("DISTILLER: {TYPE: KD, EA: 0}\n", ("DISTILLER.TYPE", "EA-KD"), "EA-KD", False),
    (EA_NODE, ("DISTILLER.TYPE", "DKD"), "EA-DKD", False),
    ("DISTILLER: {TYPE: KD, LS: True}\n", ("EXPERIMENT.LOGIT_STAND", "False"), "KD", False),
    ("DISTILLER: {TYPE: KD}\nEXPERIMENT: {LOGIT_STAND: True}\n", ("DISTILLER.LS", "False"), "KD", False),
    ("DISTILLER: {TYPE: KD}\n", ("DISTILLER.LS", "1", "EXPERIMENT.LOGIT_STAND", "0"), "KD", False),
    ("DISTILLER: {TYPE: KD, LS: True}\nEXPERIMENT: {LOGIT_STAND: False}\n", (), "KD", True),  # as in a run's record
]


@pytest.mark.parametrize(("text", "opts", "method", "standardized"), SAYS)
def test_a_switch_that_is_said_to_be_off_is_off(tmp_path, text, opts, method, standardized):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    cfg, said = load_cfg(path, opts), stated(path, opts)
    assert (cfg.DISTILLER.TYPE, cfg.DISTILLER.LS) == (method, standardized)
    assert (said["DISTILLER.TYPE"].upper(), said.get("DISTILLER.LS", False)) == (method, standardized)
    complete = flatten(cfg)
    assert all(equal(complete[key], value) for key, value in said.items() if key != "DISTILLER.TYPE")


def test_a_file_switches_off_what_the_file_that_it_inherits_from_switches_on(tmp_path):
    (tmp_path / "base.yaml").write_text("DISTILLER: {TYPE: EA-MLD, LS: True}\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nDISTILLER: {EA: 0}\nEXPERIMENT: {LOGIT_STAND: False}\n")
    cfg = load_cfg(tmp_path / "a.yaml")
    assert (cfg.DISTILLER.TYPE, cfg.DISTILLER.EA, cfg.DISTILLER.LS) == ("MLD", False, False)


def test_a_file_that_says_both_that_a_method_is_ea_and_that_it_is_not_is_refused(tmp_path):
    for text in ("{TYPE: EA-KD, EA: 0}", "{EA: False, TYPE: ea-kd}"):
        (tmp_path / "a.yaml").write_text(f"DISTILLER: {text}\n")
        for read in (load_cfg, stated):
            with pytest.raises(ValueError, match="a.yaml: DISTILLER.TYPE: '(EA|ea)-.* contradicts DISTILLER.EA: False"):
                read(tmp_path / "a.yaml")
