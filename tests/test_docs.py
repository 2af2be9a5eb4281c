"""The pages of docs/ agree with the code: examples run, tables are up to date, named tests exist."""

import ast
import re
import runpy
import shlex
import subprocess
import sys
from types import SimpleNamespace

import torch

from mdistiller.config import load_cfg
from mdistiller.config.public import DEFAULTS_KEY
from mdistiller.config.stated import flatten
from mdistiller.distillers import DISTILLERS
from mdistiller.models import build_model
from mdistiller.runs.paper import load_tables
from tests.engine.support import REPOSITORY, few_test_images
from tests.test_docs_own import BLOCK, NAME, run_line
from tools import methods

DOCS = REPOSITORY / "docs"
SHORT = ["SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]", "DATASET.TRAIN_FRACTION", "0.3", "DEVICE", "cpu"]


@few_test_images()
def test_a_method_is_added_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    teacher = tmp_path / "checkpoints" / "digits" / "resnet20.pth"  # found before the shipped one
    teacher.parent.mkdir(parents=True)
    torch.save({"model": build_model("resnet20", 10).state_dict()}, teacher)
    before = set(DISTILLERS)
    try:
        for kind, text in BLOCK.findall((DOCS / "add_a_method.md").read_text()):
            if kind == "bash":
                for line in text.splitlines():
                    run(shlex.split(line), monkeypatch)
            else:
                (tmp_path / NAME.match(text)[1]).write_text(text)
    finally:
        for name in set(DISTILLERS) - before:
            del DISTILLERS[name]
    runs = {path.name for path in (tmp_path / "output" / "distill").iterdir()}
    assert runs == {f"digits_{name}_resnet20_resnet8_s0" for name in ("myl1", "ea-myl1", "ea-myhint")}
    assert re.search(r"^\| digits \| EA-MYL1 +\| resnet20", capsys.readouterr().out, re.MULTILINE)  # compared


def run(words, monkeypatch):
    if words[:3] != ["python", "-m", "pytest"]:
        return run_line(words, monkeypatch, SHORT)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_table_of_methods_is_what_its_command_writes(monkeypatch):
    """The methods, from the first pair; distillers/test_pairs.py compares the pairs that a method refuses."""
    first = dict(list(load_tables()["2"].columns.items())[:1])
    monkeypatch.setattr(methods, "load_tables", lambda: {"2": SimpleNamespace(columns=first)})
    written, found = (re.split(r"^(?:None\.$|\| method \| pair )", text, flags=re.MULTILINE)[0]
                      for text in ((DOCS / "methods.md").read_text(), methods.page()))
    assert found == written and "## Pairs" in found, "run python tools/methods.py"


def test_the_evidence_of_the_fidelity_page_exists():
    """Tests are named only as `<file below tests/>::<function>`."""
    text = (DOCS / "fidelity.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 60
    for file, function in named:
        tree = ast.parse((REPOSITORY / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{function}"
    assert not re.findall(r"test_\w+", re.sub(r"`[\w/]+\.py::\w+`", "", text)), "a test without its file"


def test_the_switches_of_the_fidelity_page_are_keys():
    text = (DOCS / "fidelity.md").read_text()
    named = set(re.findall(r"\b([A-Z_]{2,}(?:\.[A-Z_]+)+)\b", text))
    assert len(named) > 25 and named <= {*flatten(load_cfg()), DEFAULTS_KEY}


def test_every_test_that_the_page_on_reliability_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / "reliability.md").read_text())
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}" in (REPOSITORY / file).read_text(), (file, test)


def test_every_link_of_the_site_leads_to_a_page_of_it(tmp_path, monkeypatch):
    pages = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "scripts" / "docs_pages.py")))
    monkeypatch.setitem(pages.main.__globals__, "PAGES", tmp_path / "pages")
    pages.main()
    links = [(page, link) for page in (tmp_path / "pages").rglob("*.md")
             for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")) if ":" not in link]
    assert len(links) > 20
    assert not [(page.name, link) for page, link in links if not (page.parent / link).exists()]


def test_options_in_the_pages_are_those_of_their_commands():
    pages = [REPOSITORY / "README.md", *DOCS.glob("*.md")]
    lines = re.findall(r"^ +python (tools/\w+\.py) (.*)$", "\n".join(page.read_text() for page in pages), re.MULTILINE)
    used = {(tool, option) for tool, words in lines for option in re.findall(r"(?<!\S)--[a-z-]+", words.split("#")[0])}
    assert len(used) > 20
    assert not {(tool, option) for tool, option in used if f'"{option}"' not in (REPOSITORY / tool).read_text()}
