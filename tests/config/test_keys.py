"""Declarations of keys: every number has a range and every key a meaning, and docs/config.md lists them."""

from pathlib import Path

import pytest

from mdistiller.config import Key, load_cfg
from mdistiller.config.key import flat_keys
from mdistiller.config.keys import GENERAL
from mdistiller.config.loading import method_keys
from mdistiller.config.page import page
from mdistiller.config.stated import flatten
from mdistiller.config.words import Typed, shown
from mdistiller.errors import UserError

KEYS = {**GENERAL, **method_keys()}
NUMBERS = [name for name, key in KEYS.items()
           if {int, float} & {*key.kinds, key.item, *(map(type, key.default) if list in key.kinds else ())}]
PATHS = ["DATASET.ROOT", "DISTILLER.TEACHER", "DISTILLER.STUDENT", "DISTILLER.TEACHER_CHECKPOINT", "LOG.PREFIX",
         "DISTILLER.STUDENT_CHECKPOINT", "TEACHER_CACHE.DIR", "WKD.COST_MATRIX_PATH", "DATASET.VAL_FOLDER"]


def test_the_page_of_keys_is_what_its_command_writes():
    path = Path(__file__).resolve().parents[2] / "docs" / "config.md"
    assert path.read_text() == page(), "run python -m mdistiller.config"
    assert "\n## SDD\n\nIts method also reads: `KD`, `DKD`.\n" in page()


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_a_meaning_and_a_default_that_it_takes(name):
    key = KEYS[name]
    assert key.help.endswith((".", ")")) and len(key.help) > 10
    assert key.read(key.default) == key.default
    assert key.sets is None or key.sets in KEYS


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_range_is_reported_with_the_range(name):
    for value in (1e308, -1e308, 10**31, -(10**31), 10**400, 16**4200, "1e400", "nan"):
        with pytest.raises(ValueError, match="^expected ") as caught:
            KEYS[name].read([value] if list in KEYS[name].kinds else value)
        assert len(str(caught.value)) < 200


ANYWHERE = ["SOLVER.LR", "SOLVER.STEPS", "EXPERIMENT.SEED", "DATASET", "KD.TEMPERATURE", "_BASE_"]


@pytest.mark.parametrize("name", ANYWHERE)
def test_a_huge_integer_is_reported_in_one_line(name, tmp_path):
    (tmp_path / "a.yaml").write_text(f"{name.replace('.', ': {')}: 0x{'F' * 4200}{'}' * name.count('.')}\n")
    with pytest.raises(UserError, match=f"a.yaml: {name}: expected .*found an integer of 16,800 bits"):
        load_cfg(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(f"SOLVER:\n  ? 0x{'F' * 4200}\n  : 1\n")
    with pytest.raises(UserError, match="b.yaml: unknown key SOLVER.'0xFFFF.*'; known: "):
        load_cfg(tmp_path / "b.yaml")


@pytest.mark.parametrize(("name", "most"), [
    ("KD.TEMPERATURE", 1e4), ("RLD.ALPHA_T", 1e4), ("AT.P", 64), ("CRD.FEAT.DIM", 2**16), ("WKD.SAMPLES", 10**5),
    ("WKD.SINKHORN.ITER", 10**4), ("CAT_KD.LOSS.CAM_RESOLUTION", 256), ("SOLVER.EPOCHS", 10**6), ("SOLVER.LR", 1e30),
    ("RKD.PDIST.EPSILON", 1), ("VID.INIT_PRED_VAR", 1e6),
])
def test_the_largest_allowed_number_is_accepted_and_twice_as_much_is_refused(name, most):
    assert flatten(load_cfg(None, [name, most]))[name] == most
    with pytest.raises(UserError, match=f"{name}: expected a number .*at most"):
        load_cfg(None, [name, 2 * most])


@pytest.mark.parametrize("name", PATHS)
def test_home_and_variables_are_expanded_in_every_path(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    assert KEYS[name].path
    for given, expected in (("~/x", tmp_path / "me/x"), ("$PLACE/x", tmp_path / "place/x"),
                            ("${PLACE}x", f"{tmp_path}/placex"), ("a$NOT_SET", "a$NOT_SET"), ("a~b", "a~b")):
        assert flatten(load_cfg(None, [name, given]))[name] == str(expected)
    (tmp_path / "a.yaml").write_text(f"{name.replace('.', ': {')}: ~/x{'}' * name.count('.')}\n")
    assert flatten(load_cfg(tmp_path / "a.yaml"))[name] == str(tmp_path / "me/x")


def test_home_and_variables_are_expanded_in_bases_and_plugins(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("SOLVER: {EPOCHS: 7}\n")
    (tmp_path / "empty_plugin.py").write_text("")
    text = "_BASE_: [~/base.yaml, $HOME/base.yaml]\nEXPERIMENT: {PLUGINS: [~/empty_plugin.py]}\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg = load_cfg(tmp_path / "a.yaml")
    assert (cfg.SOLVER.EPOCHS, cfg.EXPERIMENT.PLUGINS) == (7, [str(tmp_path / "empty_plugin.py")])


def test_every_key_that_names_a_place_is_a_path():
    words = ("ROOT", "DIR", "PREFIX", "PATH", "CHECKPOINT", "FOLDER", "PLUGINS", "_FILE", "TOKENIZER")
    places = {name for name in KEYS if name.split(".")[-1].endswith(words) and "FOLD_" not in name}
    assert places == {name for name, key in KEYS.items() if key.path} - {"DISTILLER.TEACHER", "DISTILLER.STUDENT"}


@pytest.mark.parametrize(("key", "given", "expected"), [
    ("_base_", "a.yaml", "unknown key _base_; nearest: _BASE_"),
    ("solver", "{LR: 1}", "unknown key solver; nearest: SOLVER"),
    ("SOLVER", "{lr: 1}", "unknown key SOLVER.lr; nearest: SOLVER.LR"),
    ("dkd", "{BETA: 1}", "unknown key dkd; nearest: DKD"),
    ("DISTILLER", "{T: 1}", "unknown key DISTILLER.T; nearest: DISTILLER.t"),
])
def test_a_key_in_other_letters_names_the_right_one(tmp_path, key, given, expected):
    (tmp_path / "a.yaml").write_text(f"{key}: {given}\n")
    with pytest.raises(UserError, match=f"a.yaml: {expected}"):
        load_cfg(tmp_path / "a.yaml")


def test_plain_default_values_get_a_general_range():
    keys = flat_keys({"WEIGHT": 2.0, "INNER": {"COUNT": 3, "NAME": "a"}, "OWN": Key(1, least=0, most=2), "AT": (1, 2)})
    assert list(keys) == ["WEIGHT", "INNER.COUNT", "INNER.NAME", "OWN", "AT"]
    assert keys["AT"].read("[3, 4]") == (3, 4)
    assert (keys["WEIGHT"].read(1), keys["INNER.COUNT"].read(-7.0), keys["INNER.NAME"].read(Typed("007"))) == (
        1.0, -7, "007")
    for name, value in (("WEIGHT", 1e31), ("INNER.COUNT", 2**31), ("OWN", 3)):
        with pytest.raises(ValueError, match="expected a number at least .* and at most"):
            keys[name].read(value)


def test_values_are_shortened_in_messages():
    bomb = ["x"] * 9
    for _ in range(30):
        bomb = [bomb] * 9
    for value in (bomb, "x" * 10**6, 16**4200, {16**4200: 1}, [[[[[[1]]]]]]):
        assert len(shown(value)) < 400


def test_an_error_about_two_keys_names_the_last_that_was_set_of_them(tmp_path):
    (tmp_path / "b.yaml").write_text("FCFD: {EXTRA_TYPE: s2t, TEACHER_MODE: eval}\n")  # EXTRA_PATHS is the default
    with pytest.raises(UserError, match="command line: FCFD.EXTRA_PATHS: expected 0 with EXTRA_TYPE nomix; found 2"):
        load_cfg(tmp_path / "b.yaml", ["FCFD.EXTRA_TYPE", "nomix"])
    (tmp_path / "a.yaml").write_text("CTKD: {T_START: 2.0, T_END: -3.0}\n")
    with pytest.raises(UserError, match=r"a.yaml: CTKD.T_END: expected T_START \+ T_END greater than 0; found 2.0 and"):
        load_cfg(tmp_path / "a.yaml")
