"""Wrong input ends with exit code 2 and one line that names the mistake, and no saved file is changed.

The inputs themselves are data, in wrong_inputs/.
"""

import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wrong_inputs import CASES
from tests.wrong_inputs.case import run_here
from tests.wrong_inputs.saved import make_saved, snapshot, stamps

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py") if path.stem != "__init__")
MOST_LINES, MOST_LETTERS = 4, 1600  # of stderr, and of the error in it


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of saved files, their stamps). The libraries are imported here: no case shall wait for them."""
    from mdistiller.analysis import measure  # noqa: F401
    from mdistiller.bench import cases  # noqa: F401
    from mdistiller.engine import export  # noqa: F401
    from mdistiller.engine.teachers import archives  # noqa: F401
    from mdistiller.runs import paper
    from mdistiller.sweep import cluster, processes  # noqa: F401

    processes.preload()
    paper.load_tables()
    for module in (*(f"tools.{tool}" for tool in TOOLS), "matplotlib.backends.backend_pdf", "matplotlib.pyplot"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a case need not go through the libraries
    folder = tmp_path_factory.mktemp("wrong") / "saved"
    make_saved(folder)
    before = snapshot(folder)
    yield folder, stamps(folder)
    gc.unfreeze()
    assert snapshot(folder) == before, "saved files have changed"


def name_of_folder(case):
    return re.sub(r"[^\w.-]+", "-", case.name)[:80]


def check(case, folder, code, err, saved):
    lines = err.splitlines()
    assert "Traceback" not in err and code == 2, f"exit code {code}: {err}"
    assert lines and lines[-1].startswith("error: ") and len(lines) <= MOST_LINES, err
    assert case.says in lines[-1] and len(lines[-1]) <= MOST_LETTERS, err
    assert not list(folder.rglob("harmed")), "code from a file has run"
    assert stamps(saved[0]) == saved[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_input_is_one_line_and_exit_2_and_harms_nothing(case, saved):
    folder = saved[0].parent / f"{CASES.index(case)}-{name_of_folder(case)}"
    case.prepare(folder, saved[0])
    code, _, err = run_here(case.tool, case.words, folder)
    check(case, folder, code, err, saved)
    shutil.rmtree(folder)


def test_the_catalogue_holds_three_hundred_different_inputs_for_every_command():
    assert len({case.name for case in CASES}) == len(CASES) >= 300
    different = {(case.tool, case.words, tuple(case.files.items())) for case in CASES}
    assert len(different) == len(CASES)
    assert {case.tool for case in CASES} == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_wrong_input_as_a_user_types_it(tool, saved):
    """The first input of each tool, and the last one of tools that read checkpoints, in a new interpreter."""
    case = [case for case in CASES if case.tool == tool][-1 if tool in ("train", "eval", "fetch_teachers") else 0]
    folder = saved[0].parent / f"typed-{tool}"
    case.prepare(folder, saved[0])
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / f"{tool}.py", *case.words], cwd=folder, capture_output=True, text=True,
        timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    check(case, folder, done.returncode, done.stderr, saved)
