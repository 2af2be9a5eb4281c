"""Rules between packages: imports point one way, only a method's own file names it, no file names a machine."""

import ast
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from mdistiller.distillers import DISTILLERS

REPOSITORY = Path(__file__).resolve().parents[1]
LAYERS = [  # a package imports from those above it, and from itself
    {"errors"},
    {"files", "functional", "distributed", "workers", "registry", "plugins", "places", "command", "libraries",
     "markdown", "precision", "streams", "traces", "json_text", "hooks"},
    {"config", "losses"},
    {"models", "data", "runs"},
    {"tasks", "report"},
    {"distillers"},
    {"engine"},
    {"analysis", "bench", "library", "sweep"},
    {"tools"},
]
ABOVE = {"runs": {"config"}, "report": {"runs"}}  # all that these may import besides the lowest packages
DOORS = {"mdistiller.distillers", "mdistiller.distillers.ea"}  # the only modules of the methods that others import
LIBRARIES = {"torch", "torchvision", "timm"}
METHODS = {name for name in DISTILLERS if not DISTILLERS[name].weighted} - {"NONE"}
ENGLISH = {"AT", "DIST", "PAD"}  # in lower case: a word, torch.distributed, padding
EXAMPLES = {"help", "description", "metavar"}  # of argparse: what a user may type
PYTHON = sorted(
    path.relative_to(REPOSITORY) for room in ("mdistiller", "tools") for path in (REPOSITORY / room).rglob("*.py")
)
METHOD_FILES = sorted(
    {Path(sys.modules[cls.__module__].__file__).relative_to(REPOSITORY) for cls in DISTILLERS.values()}
    - {Path("mdistiller/distillers/base.py")}
)


def syntax(path):
    return ast.parse((REPOSITORY / path).read_text())


def room_of(path):
    """The room of a file; "" is the package's own __init__.py."""
    parts = path.with_suffix("").parts
    return parts[0] if parts[0] == "tools" else parts[1].replace("__init__", "")


def imports(path):
    """(module, names taken from it) of every import in the file, wherever it stands."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, set()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module, {alias.name for alias in node.names}


def without_torch(path):
    return room_of(path) in ("config", "runs", "report") or path.name == "plan.py"


def module_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_through_others():
    modules = {module_of(path): path for path in PYTHON}
    edges = {name: set() for name in modules}
    for name, path in modules.items():
        for module, names in imports(path):
            targets = {f"{module}.{taken}" for taken in names} | {module}
            edges[name] |= targets & modules.keys() - {name}
    while leaves := {name for name, targets in edges.items() if not targets}:  # the rest imports itself
        edges = {name: targets - leaves for name, targets in edges.items() if name not in leaves}
    assert edges == {}


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_imports_point_one_way(path):
    room = room_of(path)
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    for module, names in imports(path):
        top, _, rest = module.partition(".")
        assert not without_torch(path) or top not in LIBRARIES, f"{path} imports {module}"
        if top != "mdistiller" or not room:
            continue
        others = {rest.split(".")[0]} if rest else names & level.keys()
        for other in others - {room}:
            assert level[other] < level[room] or (level[other], level[room]) == (1, 1), f"{path} imports {module}"
            assert other not in ABOVE or room in ("tools", "sweep") or other in ABOVE.get(room, ()), f"{path}: {module}"
        if "distillers" in others - {room}:
            assert module in DOORS, f"{path} imports {module}"


MOST_LINES = {ast.ClassDef: 250, ast.FunctionDef: 55}


def long_parts(tree):
    """Names of the classes and functions that are too long."""
    return [node.name for node in ast.walk(tree)
            if type(node) in MOST_LINES and node.end_lineno - node.lineno >= MOST_LINES[type(node)]]


def test_files_have_at_most_400_lines_classes_250_and_functions_55():
    for path in sorted(path for room in ("mdistiller", "tools", "tests", "scripts")
                       for path in (REPOSITORY / room).rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert long_parts(ast.parse(text)) == [], path


def named_methods(text):
    words = set(re.findall(r"\w+", text.replace("EA-KD paper", "")))
    return {word for word in words if word.upper() in METHODS and not (word.upper() in ENGLISH and not word.isupper())}


def said_in_code(path):
    """Names and texts of a file, without docstrings, comments, and the help of its options."""
    tree = syntax(path)
    quiet = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            quiet.add(node.value)
        if isinstance(node, ast.keyword) and node.arg in EXAMPLES:
            quiet.update(ast.walk(node.value))
    for node in ast.walk(tree):
        if node not in quiet:
            yield from (value for _, value in ast.iter_fields(node) if isinstance(value, str))


@pytest.mark.parametrize("path", [path for path in PYTHON if room_of(path) in ("engine", "data")], ids=str)
def test_engine_and_data_name_no_method_not_even_in_a_comment(path):
    assert named_methods((REPOSITORY / path).read_text()) == set()


@pytest.mark.parametrize("path", [path for path in PYTHON if room_of(path) == "tools"], ids=str)
def test_the_code_of_the_tools_names_no_method(path):
    assert named_methods("\n".join(said_in_code(path))) == set()


def test_the_search_for_method_names_finds_them_in_code_and_comments():
    assert named_methods('if cfg.DISTILLER.TYPE == "crd": x = cfg.KD.T') == {"crd", "KD"}
    assert named_methods('tables of the EA-KD paper, pad at dist.rank; SOLVER.TRAINER "crd_dot"') == set()
    assert METHODS >= {"KD", "MLD", "CRD", "FITNET"} and not any("-" in name for name in METHODS)


@pytest.mark.parametrize("path", METHOD_FILES, ids=str)
def test_method_files_do_not_mention_sample_weights(path):
    text = (REPOSITORY / path).read_text().replace("cross-entrop", "")
    assert not re.findall(r"(?i)entrop\w*|\bea\b|\w*sample_weight\w*|weighted_mean", text)


FORBIDDEN = {
    r"\.cuda\(|cuda:\d": "a device chosen once, in engine/device.py",
    r"/(home|root|Users|mnt|work|tmp)/\w": "a path of some machine",
    r"https?://(?!arxiv\.org|github\.com|openreview\.net)[\w.]+": "a host",
    r"\b(TODO|FIXME|XXX)\b": "something unfinished",
    r"import (wandb|comet|mlflow)": "a service",
}
TEXTS = sorted(
    path.relative_to(REPOSITORY)
    for room in ("mdistiller", "tools", "scripts", "configs", "docs")
    for path in (REPOSITORY / room).rglob("*") if path.suffix in (".py", ".yaml", ".sh", ".md")
)


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=FORBIDDEN.values())
def test_no_file_contains(pattern):
    found = {str(path): re.search(pattern, (REPOSITORY / path).read_text()) for path in TEXTS}
    assert {path: match[0] for path, match in found.items() if match} == {}


def test_which_extra_to_install_is_said_in_one_place():
    """And by the two readers of GGUF files, for which several libraries may be missing."""
    found = {str(path) for path in PYTHON for text in said_in_code(path)
             if re.search(r"mdistiller-ea\[|['\"]\.\[", text)}
    assert found == {f"mdistiller/{name}.py" for name in ("libraries", "models/language", "data/tokenizers")}


COMMANDS = [path for path in PYTHON if room_of(path) == "tools" and path.stem != "__init__"]


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_every_command_prints_its_help(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    tool = runpy.run_path(str(REPOSITORY / path))
    with pytest.raises(SystemExit) as ended:
        tool["main"]()
    text = capsys.readouterr().out
    assert ended.value.code == 0 and tool["__doc__"].split(":")[0].split("\n")[0] in text.replace("\n", " ")
    assert callable(tool["cli"])


def test_console_scripts_are_commands_of_the_installed_package():
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        f"mdistiller-{path.stem.replace('_', '-')}": f"mdistiller_tools.{path.stem}:cli" for path in COMMANDS
    }
