"""EXPERIMENT.PLUGINS: users' methods and networks without changes to the package."""

import hashlib
import os
import sys

import pytest

from mdistiller.config import dump_cfg, load_cfg
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.models import MODELS, build_model
from mdistiller.plugins import import_file, own_files, same_files, without_folders

METHOD = '''
from mdistiller.distillers import Distiller, register
from mdistiller.models import MODELS, register_model

register_model("plugged_net")(MODELS["cifar"]["resnet8"])

@register("PLUGGED")
class Plugged(Distiller):
    """A method for this test."""

    defaults = {"WEIGHT": 1.0}

    def sample_losses(self, student, teacher, **batch):
        return {"plugged": (student.logits - teacher.logits).square().mean(dim=1)}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin file in the working folder; its registrations are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugged.py").write_text(METHOD)
    yield "plugged.py"
    for registry in (DISTILLERS, MODELS["cifar"]):
        for name in [name for name in registry if "plugged" in name.lower()]:
            del registry[name]
    for name in [name for name in sys.modules if "plugged" in name]:
        del sys.modules[name]


def test_a_plugins_method_and_network_are_known_before_the_tree_is_merged(plugin, tmp_path):
    (tmp_path / "base.yaml").write_text(f"EXPERIMENT: {{PLUGINS: [{plugin}]}}\nPLUGGED: {{WEIGHT: 2}}\n")
    path = tmp_path / "a.yaml"
    path.write_text("_BASE_: base.yaml\nDISTILLER: {TYPE: EA-Plugged, STUDENT: plugged_net}\n")
    cfg = load_cfg(path, ["PLUGGED.WEIGHT", "3"])
    assert (cfg.DISTILLER.TYPE, cfg.PLUGGED.WEIGHT, cfg.EXPERIMENT.PLUGINS) == ("EA-PLUGGED", 3.0, [plugin])
    networks = build_model("plugged_net", 10), build_model("resnet8", 10)
    assert build_distiller(cfg, *networks).method == "PLUGGED"
    path.write_text(dump_cfg(cfg))
    assert load_cfg(path) == cfg
    assert import_file(tmp_path / plugin) is import_file(plugin)  # imported only once, although it was named four times


def test_a_file_imports_those_beside_it_and_is_read_again_after_an_edit(plugin, tmp_path):
    (tmp_path / "plugged_layers.py").write_text("from torch import nn\n\nlayer = nn.Linear\n")
    file, before = tmp_path / "plugged_net.py", list(sys.path)
    text = "from plugged_layers import layer\n\n\ndef net(num_classes):\n    return layer(1, num_classes)\n"
    for inputs in (1, 2):
        file.write_text(text.replace("1", str(inputs)))
        os.utime(file, ns=(0, inputs))
        assert build_model(f"{file}:net", 5).weight.shape == (5, inputs)
    assert sys.path == before
    for weight in (1.0, 2.0):  # the file of a method, edited, and the same class in the cell of a notebook
        (tmp_path / plugin).write_text(METHOD.replace("1.0", str(weight)))
        os.utime(tmp_path / plugin, ns=(0, int(weight)))
        import_file(plugin)
        assert DISTILLERS["EA-PLUGGED"].defaults == {"WEIGHT": weight}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / plugin).write_text(METHOD)
    with pytest.raises(UserError, match="'PLUGGED' is already registered"):
        import_file(f"other/{plugin}")


@pytest.mark.parametrize("word", ["[plugged.py]", "[plugged]"])
def test_on_the_command_line_and_as_a_module(plugin, tmp_path, monkeypatch, word):
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load_cfg(None, ["DISTILLER.TYPE", "plugged", "EXPERIMENT.PLUGINS", word, "PLUGGED.WEIGHT", "0.5"])
    assert (cfg.DISTILLER.TYPE, cfg.PLUGGED.WEIGHT) == ("PLUGGED", 0.5)


def test_the_plugins_of_the_nearest_file_replace_those_of_its_base(plugin, tmp_path):
    (tmp_path / "base.yaml").write_text("EXPERIMENT: {PLUGINS: [gone.py]}\n")
    (tmp_path / "a.yaml").write_text(f"_BASE_: base.yaml\nEXPERIMENT: {{PLUGINS: [{plugin}]}}\n")
    assert "PLUGGED" in load_cfg(tmp_path / "a.yaml")


def test_a_whole_node_of_the_command_line_may_name_the_method_and_its_file(plugin):
    cfg = load_cfg(None, ["EXPERIMENT", f"{{PLUGINS: [{plugin}]}}", "DISTILLER", "{TYPE: PLUGGED}"])
    assert cfg.DISTILLER.TYPE == "PLUGGED"


@pytest.mark.parametrize(("plugins", "code", "message"), [
    ("[gone.py]", "", "EXPERIMENT.PLUGINS: gone.py: no such file"),
    ("[mistake.py]", "\nimport no_such_module", "mistake.py:2: cannot be imported: ModuleNotFoundError: No module"),
    ("[mistake.py]", "def f(:", "mistake.py: cannot be imported: SyntaxError: "),
    ("[mistake.py]", "import mdistiller.distillers as d\nd.register('kd')(type('A', (d.Distiller,), {}))",
     "mistake.py:2: cannot be imported: ValueError: method 'kd' is already registered"),
    ("[mistake.py]", "from mdistiller.distillers import *\nregister('X')(type('A', (Distiller,), {'inputs': 'logit'}))",
     "mistake.py:2: cannot be imported: A.inputs: expected 'logits' or 'features', found 'logit'"),
    ("[mistake.py]", "from mdistiller.distillers import *\nregister('X')(type('A', (Distiller,), {'views': 'image'}))",
     "A.views: expected a tuple of names, such as ('image',), found 'image'"),
    ("[mistake.py]",
     "from mdistiller.distillers import *\nregister('X')(type('A', (Distiller,), {'image_terms': 'map'}))",
     "A.image_terms: expected a tuple of names, such as ('image',), found 'map'"),
    ("[no_such_module]", "", "EXPERIMENT.PLUGINS: 'no_such_module': ModuleNotFoundError: No module named"),
    ("['']", "", "EXPERIMENT.PLUGINS: '': ValueError"),
    ("[010]", "", "EXPERIMENT.PLUGINS: '010': ModuleNotFoundError"),
    ("mistake.py", "", "EXPERIMENT.PLUGINS: expected a list such as [a, b], found 'mistake.py'"),
])
def test_a_plugin_that_cannot_be_imported_is_reported_in_one_line(tmp_path, monkeypatch, plugins, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistake.py").write_text(code)
    path = tmp_path / "a.yaml"
    path.write_text(f"EXPERIMENT: {{PLUGINS: {plugins}}}\n")
    with pytest.raises(UserError) as caught:
        load_cfg(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: EXPERIMENT.PLUGINS: ") and message in text and "\n" not in text


def test_a_python_file_is_known_by_its_name_and_content_wherever_it_lies(plugin):
    settings = {"EXPERIMENT.PLUGINS": [f"../{os.path.basename(os.getcwd())}/{plugin}", "a.module", "gone.py"],
                "DISTILLER.STUDENT": f"{plugin}:Net", "DISTILLER.TEACHER": "resnet20"}
    digest = hashlib.sha256(METHOD.encode()).hexdigest()
    assert own_files(settings) == {plugin: digest}
    assert without_folders(["a/b/method.py", "c.d", 3]) == ["method.py", "c.d", 3]
    assert without_folders("/home/x/net.py:Net") == "net.py:Net" and without_folders("timm:vit") == "timm:vit"


def test_files_that_a_python_file_imports_from_its_folder_belong_to_it(tmp_path):
    texts = {
        "net.py": "import os, torch, parts.loss as p, mdistiller\nfrom beside import one\nfrom mdistiller.a import b",
        "beside.py": "def f():\n    from . import late\n    import net",  # a circle, and within a function
        "late.py": "not python (",
        "parts/__init__.py": "",
        "parts/loss.py": "from .. import unused_name\nfrom .inner import g",
        "parts/inner.py": "from .mdistiller import h",
        "parts/other.py": "",
        "torch.txt": "",
        "mdistiller/__init__.py": "",  # the file lies beside the package, as in the examples of docs/add_a_method.md
        "mdistiller/a.py": "",
        "parts/mdistiller.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = own_files({"DISTILLER.STUDENT": f"{tmp_path}/net.py:Net"})
    imported = ("net.py", "beside.py", "late.py", "parts/__init__.py", "parts/loss.py", "parts/inner.py",
                "parts/mdistiller.py")
    assert found == {name: hashlib.sha256(texts[name].encode()).hexdigest() for name in imported}
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "net.py").symlink_to(tmp_path / "net.py")
    assert own_files({"DISTILLER.STUDENT": f"{tmp_path}/link/net.py:Net"}) == found


def test_a_run_records_its_python_files_and_tells_an_edit_when_it_continues(plugin, tmp_path):
    cfg = load_cfg(None, ["DISTILLER.TYPE", "PLUGGED", "EXPERIMENT.PLUGINS", f"[{plugin}]"])
    folder = RunFolder(tmp_path / "run")
    folder.describe(cfg)
    assert folder.edited() == []
    folder.describe(cfg)
    assert folder.edited() == []
    (tmp_path / plugin).write_text(f"{METHOD}# edited\n")
    folder.describe(cfg)
    assert folder.edited() == [plugin]
    elsewhere = tmp_path / "elsewhere" / plugin
    elsewhere.parent.mkdir()
    os.rename(tmp_path / plugin, elsewhere)
    for name in [name for name in DISTILLERS if "PLUGGED" in name]:
        del DISTILLERS[name]  # as in the process that continues it
    cfg.EXPERIMENT.PLUGINS = [str(elsewhere)]
    folder.check_settings(cfg)  # the run continues with the file in another folder
    elsewhere.write_text(f"{METHOD}# another\n")
    for name in [name for name in DISTILLERS if "PLUGGED" in name]:
        del DISTILLERS[name]
    with pytest.raises(UserError, match="already contains a run with other settings: EXPERIMENT.PLUGINS"):
        folder.check_settings(cfg)  # but not with another file, of which only the name is the same


def test_files_are_the_same_if_some_are_recorded_and_none_has_changed():
    recorded = {"a.py": "1", "b.py": "2"}
    assert same_files(recorded, recorded) and same_files(recorded, {"a.py": "1", "new.py": "3"})
    assert not same_files(recorded, {"a.py": "1", "b.py": "3"})
    assert not same_files({}, recorded) and not same_files({}, {}) and not same_files(recorded, {"new.py": "3"})


def test_a_record_with_odd_digests_is_taken_for_one_without(plugin, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for session in ("a text", None, {"own_files": [plugin]}, {"own_files": {plugin: [1]}}):
        folder.write_json("run.json", {"sessions": [session]})
        folder.describe(load_cfg(None, ["EXPERIMENT.PLUGINS", f"[{plugin}]"]))
        assert folder.edited() == []


def test_of_two_files_of_one_name_an_edit_of_either_is_seen(tmp_path):
    settings = {"DISTILLER.STUDENT": f"{tmp_path}/a/net.py:Net", "DISTILLER.TEACHER": f"{tmp_path}/b/net.py:Net"}
    seen = []
    for place, text in (("a", "first"), ("b", "first"), ("a", "second"), ("b", "second")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "net.py").write_text(text)
        seen.append(own_files(settings)["net.py"])
    first, second = seen[0], seen[-1]
    assert seen == [first, first, f"{second}+{first}", second] and first != second


def test_an_unreadable_python_file_has_no_digest(plugin, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr("mdistiller.files.sha256", refuse)
    assert own_files({"EXPERIMENT.PLUGINS": [plugin], "DISTILLER.STUDENT": f"{'n' * 300}.py:Net"}) == {}


def test_of_two_trusted_files_of_one_name_a_record_gets_its_own(tmp_path):
    paths = [tmp_path / place / "mine.py" for place in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"import sys\nsys.imported_here = getattr(sys, 'imported_here', []) + ['{path.parent.name}']\n")
    record = tmp_path / "config.yaml"
    record.write_text(f"EXPERIMENT: {{PLUGINS: ['{paths[0]}', '{paths[1]}']}}\n")
    try:
        load_cfg(record, trusted=[str(path) for path in paths])
        assert sys.imported_here == ["a", "b"]
    finally:
        del sys.imported_here
