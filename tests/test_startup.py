"""Heavy libraries are imported only where they are used; the imports are listed, not timed."""

import json
import subprocess
import sys

import pytest
import torch

from tests.engine.support import REPOSITORY, SMALL

COMPILER = {"torch._dynamo", "torch._inductor"} if torch.__version__ >= (2, 5) else {"torch._dynamo"}
LIBRARIES = COMPILER | {"torchvision", "timm", "sklearn", "scipy", "matplotlib", "transformers"}
LIGHT = LIBRARIES | {"torch", "torch.utils.tensorboard"}
ENTRIES = {  # run in one interpreter, in this order; the libraries that must not have been imported afterwards
    "tools/train.py --help": LIGHT | {"numpy", "yaml", "yacs"},
    "import mdistiller": LIGHT | {"numpy", "yaml", "yacs"},
    "--help of every command": LIGHT,
    "reports": LIGHT,
    "import mdistiller.engine.setup": LIBRARIES | {"torch.utils.tensorboard"},
    "an epoch of digits": LIBRARIES,
}
PROGRAM = """
import contextlib, importlib, io, json, pkgutil, runpy, sys
entries, small = json.loads(sys.argv[1])

def help_of(command):
    sys.argv = [command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_path(f"tools/{command}.py", run_name="__main__")

def commands():
    for command in pkgutil.iter_modules(["tools"]):
        help_of(command.name)

def reports():
    from mdistiller import report, runs
    for room in (report, runs):
        for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
            importlib.import_module(module.name)
    from mdistiller.runs import fill, paper
    fill.fill(paper.load_tables()["2"], [])

def train():
    from mdistiller.config import load_cfg
    from mdistiller.engine.setup import train
    train(load_cfg(None, small))

actions = [lambda: help_of("train"), lambda: importlib.import_module("mdistiller"), commands, reports,
           lambda: importlib.import_module("mdistiller.engine.setup"), train]
found = {}
for (entry, unwanted), action in zip(entries.items(), actions, strict=True):
    action()
    found[entry] = sorted(set(unwanted) & set(sys.modules))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    small = [*SMALL, "DISTILLER.TYPE", "EA-KD", "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [],
             "LOG.PREFIX", str(tmp_path_factory.mktemp("runs"))]
    words = json.dumps([{entry: sorted(names) for entry, names in ENTRIES.items()}, small])
    done = subprocess.run([sys.executable, "-c", PROGRAM, words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_point_imports_only_the_libraries_that_it_uses(entry, imported):
    assert imported[entry] == []


def test_without_the_locks_of_posix_the_pure_functions_work_and_one_line_says_what_the_rest_needs():
    code = "import sys; sys.modules['fcntl'] = None; import mdistiller as md; print(md.losses.kd_loss); md.distill"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.startswith("<function kd_loss")
    assert done.stderr.splitlines()[-1].startswith("ImportError: Windows has only mdistiller.losses")
