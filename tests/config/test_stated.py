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
