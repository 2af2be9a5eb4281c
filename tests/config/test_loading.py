"""The config loader: inheritance, types, spellings, and one-line errors."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdistiller.config import dump_cfg, get_cfg, load_cfg
from mdistiller.config.files import chain, read_yaml
from mdistiller.config.keys import GENERAL
from mdistiller.config.stated import flatten
from mdistiller.errors import UserError

MDISTILLER = Path(__file__).parents[1] / "golden" / "config" / "mdistiller_defaults.yaml"


@pytest.fixture
def write(tmp_path):
    """write("a/b.yaml", text) -> its path; folders are made."""

    def _write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def failure(path=None, opts=()):
    """The message of the UserError that loading raises."""
    with pytest.raises(UserError) as caught:
        load_cfg(path, opts)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- defaults ------------------------------------------------------------------------------------------------------


def test_all_keys_of_mdistiller_are_accepted_and_have_its_defaults():
    assert len(read_yaml(MDISTILLER)) == 18
    assert load_cfg(MDISTILLER) == load_cfg() == get_cfg()
    assert get_cfg().LOG.WANDB is True and get_cfg().KD.TEMPERATURE == 4


def test_changing_one_tree_leaves_the_next_one_unchanged():
    one = get_cfg()
    one.SOLVER.LR_DECAY_STAGES.append(999)
    one.SOLVER.LR, one.DKD.BETA = 7.0, 3.0
    two = get_cfg()
    assert (two.SOLVER.LR_DECAY_STAGES, two.SOLVER.LR, two.DKD.BETA) == ([150, 180, 210], 0.05, 8.0)
    assert GENERAL["SOLVER.LR_DECAY_STAGES"].default == [150, 180, 210]


# --- inheritance ---------------------------------------------------------------------------------------------------


def test_the_nearer_file_wins_key_by_key_and_bases_are_relative_to_their_file(write):
    write("base.yaml", "SOLVER: {LR: 0.1, EPOCHS: 10}\nDKD: {BETA: 1.0}\n")
    write("kd/pair.yaml", "_BASE_: ../base.yaml\nSOLVER: {EPOCHS: 20}\nDKD: {BETA: 2.0}\n")
    leaf = write("dkd/deep/pair.yaml", "_BASE_: ../../kd/pair.yaml\nDKD: {ALPHA: 3.0}\n")
    cfg = load_cfg(leaf)
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.DKD.BETA, cfg.DKD.ALPHA) == (0.1, 20, 2.0, 3.0)
    assert [Path(name).name for name, _ in chain(leaf)] == ["base.yaml", "pair.yaml", "pair.yaml"]
    assert load_cfg(leaf, ["DKD.BETA", "9"]).DKD.BETA == 9.0
    assert load_cfg(str(leaf)) == cfg


def test_of_several_bases_the_later_wins_and_what_it_inherits_with_it(write):
    write("common.yaml", "SOLVER: {LR: 0.1, EPOCHS: 10, BATCH_SIZE: 8}\n")
    write("left.yaml", "_BASE_: common.yaml\nSOLVER: {LR: 0.2, EPOCHS: 20}\nDKD: {T: 2.0}\n")
    write("right.yaml", "SOLVER: {LR: 0.3}\nDKD: {BETA: 3.0}\n")
    solver = load_cfg(write("a.yaml", "_BASE_: [left.yaml, right.yaml]\nDKD: {ALPHA: 5.0}\n")).SOLVER
    assert (solver.LR, solver.EPOCHS, solver.BATCH_SIZE) == (0.3, 20, 8)
    cfg = load_cfg(write("b.yaml", "_BASE_: [right.yaml, left.yaml, common.yaml]\n"))
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.DKD.T, cfg.DKD.BETA) == (0.1, 10, 2.0, 3.0)
    assert load_cfg(write("c.yaml", "_BASE_: []\n")) == get_cfg()


def test_bases_that_double_at_each_level_are_refused_in_one_line(write):
    write("f0.yaml", "")
    for level in range(40):
        write(f"f{level + 1}.yaml", f"_BASE_: [f{level}.yaml, f{level}.yaml]\n")
    assert "_BASE_: expected at most 4,000 files" in failure(write("a.yaml", "_BASE_: f40.yaml\n"))


def test_an_absolute_base_and_an_empty_file(write):
    base = write("elsewhere/base.yaml", "SOLVER: {LR: 0.3}\n")
    assert load_cfg(write("a.yaml", f"_BASE_: {base}\n")).SOLVER.LR == 0.3
    assert load_cfg(write("empty.yaml", "# nothing but a comment\n")) == get_cfg()


@pytest.mark.parametrize(("files", "expected"), [
    ({"a.yaml": "_BASE_: a.yaml"}, "inherits from itself"),
    ({"a.yaml": "_BASE_: x/b.yaml", "x/b.yaml": "_BASE_: ../x/../a.yaml"}, "inherits from itself"),
    ({"a.yaml": "_BASE_: none.yaml"}, "no such file"),
    ({"a.yaml": "_BASE_: ."}, "no such file"),
    ({"a.yaml": "_BASE_: ''"}, "no such file"),
    ({"a.yaml": "_BASE_: " + "x" * 5000}, "no such file"),
    ({"a.yaml": '_BASE_: "a\\0b"'}, "no such file"),
    ({"a.yaml": "_BASE_: [b.yaml, 3]"}, "expected the path of a YAML file or a list of them"),
    ({"a.yaml": "_BASE_: 3"}, "expected the path of a YAML file"),
    ({"a.yaml": "_BASE_: [b.yaml, c.yaml]", "b.yaml": ""}, "no such file"),
    ({"a.yaml": "_BASE_: [b.yaml, a.yaml]", "b.yaml": ""}, "inherits from itself"),
    ({"a.yaml": "SOLVER: {_BASE_: b.yaml}"}, "unknown key SOLVER._BASE_"),
])
def test_an_invalid_base_is_refused(write, files, expected):
    for name, text in files.items():
        write(name, text)
    message = failure(write("a.yaml", files["a.yaml"]))
    assert expected in message and "a.yaml" in message


def test_a_missing_file_or_one_that_is_not_text_is_refused(write, tmp_path):
    assert "gone.yaml: no such config file; tools/configs.py lists" in failure(tmp_path / "gone.yaml")
    assert "cannot be read" in failure(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: cannot be read: not UTF-8 at byte 0; save it as UTF-8" in failure(tmp_path / "binary.yaml")
    (tmp_path / "nul.yaml").write_bytes(b"SOLVER: {LR: 0.1}\0")
    assert "nul.yaml: cannot be read: a NUL byte at byte 17; save it as UTF-8" in failure(tmp_path / "nul.yaml")
    (tmp_path / "binary.yaml").write_bytes("SOLVER: {LR: 0.1}".encode("utf-16-le"))
    assert "save it as UTF-8" in failure(tmp_path / "binary.yaml")


# --- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("SOLVER: {LR: 0.1}\nDKD: {T: 1}\nSOLVER: {EPOCHS: 3}", "a.yaml:3: not valid YAML: key 'SOLVER' is written twice"),
    ("SOLVER:\n  LR: 0.1\n  LR: 0.2", "a.yaml:3: not valid YAML: key 'LR' is written twice"),
    ("SOLVER: {LR: 0.1", "a.yaml:1: not valid YAML"),
    ("SOLVER:\n\tLR: 0.1", "a.yaml:2: not valid YAML"),
    ("- SOLVER", "a.yaml: expected a mapping of keys, found list"),
    ("SOLVER", "a.yaml: expected a mapping of keys, found str"),
    ("? [SOLVER]\n: 1", "not valid YAML"),
    ("SOLVER: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ("SOLVER: {LR: !!int ''}", "SOLVER.LR: expected float, found ''"),
    ("SOLVER: {LR: !!bool maybe}", "not valid YAML"),
    ("a: " + "[" * 5000, "not valid YAML"),
])
def test_a_file_that_is_not_a_mapping_is_refused(write, text, expected):
    message = failure(write("a.yaml", text))
    assert expected in message and "a.yaml" in message


def test_a_yaml_anchor_merged_into_another_node_is_read(write):
    anchored = "KD: {LOSS: &loss {CE_WEIGHT: 1.0, KD_WEIGHT: 2.0}}\n"
    path = write("a.yaml", anchored + "CTKD: {LOSS: {<<: *loss, KD_WEIGHT: 3.0}}\n")
    assert dict(load_cfg(path).CTKD.LOSS) == {"CE_WEIGHT": 1.0, "KD_WEIGHT": 3.0}


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "given", "expected"), [
    ("SOLVER.LR", 1, 1.0),
    ("SOLVER.LR", "1e-4", 1e-4),
    ("SOLVER.WEIGHT_DECAY", "5e-4", 5e-4),
    ("KD.TEMPERATURE", 4, 4.0),
    ("SOLVER.EPOCHS", 12.0, 12),
    ("SOLVER.NESTEROV", 1, True),
    ("DISTILLER.LS", False, False),
    ("EXPERIMENT.TAG", 7, "7"),
    ("SOLVER.LR_DECAY_STAGES", [], []),
    ("SOLVER.LR_DECAY_STAGES", [3.0, 5], [3, 5]),
    ("SOLVER.LR_DECAY_STAGES", "(62, 75, 87)", [62, 75, 87]),  # a tuple is a text for YAML, not for yacs
    ("FITNET.INPUT_SIZE", "(64, 64)", [64, 64]),
    ("SOLVER.LR_DECAY_STAGES", "[62, 75]", [62, 75]),  # in quotes, which yacs evaluates
    ("SOLVER.LR_DECAY_STAGES", "62,75", [62, 75]),
    ("SOLVER.EPOCHS", "3", 3),
    ("SOLVER.NESTEROV", "True", True),
    ("DISTILLER.TEACHER_CHECKPOINT", None, None),
    ("DISTILLER.TEACHER_CHECKPOINT", "None", None),
    ("DISTILLER.TEACHER_INPUT_SIZE", 224, 224),
    ("EA.UPPER_BOUND", 100, 100.0),
    ("EA.UPPER_BOUND", "log_c", "log_c"),
])
def test_a_value_is_converted_to_the_type_of_its_default(write, key, given, expected):
    node, leaf = key.rsplit(".", 1)
    for cfg in (load_cfg(write("a.yaml", yaml.safe_dump({node: {leaf: given}}))), load_cfg(None, [key, given])):
        assert cfg[node][leaf] == expected and type(cfg[node][leaf]) is type(expected)
    text = [key, str(given)] if given is not None else [key, "null"]
    assert load_cfg(None, text)[node][leaf] == expected


@pytest.mark.parametrize(("key", "given", "expected"), [
    ("SOLVER.LR", "fast", "expected float, found 'fast'"),
    ("SOLVER.LR", True, "expected float, found True"),
    ("SOLVER.LR", ".nan", "expected float"),
    ("SOLVER.LR", ".inf", "expected float"),
    ("SOLVER.LR", "1" + "0" * 400, "expected float"),
    ("SOLVER.LR", 0, "expected a number greater than 0 and at most 1e+30; found 0.0"),
    ("SOLVER.LR", None, "expected float, found None"),
    ("SOLVER.EPOCHS", 1.5, "expected int, found 1.5"),
    ("SOLVER.EPOCHS", "1" + "0" * 400, "expected int, found an integer of 1,329 bits"),
    ("SOLVER.EPOCHS", "many", "expected int, found 'many'"),
    ("SOLVER.EPOCHS", True, "expected int, found True"),
    ("SOLVER.EPOCHS", 0, "expected a number at least 1 and at most 1000000; found 0"),
    ("SOLVER.NESTEROV", 2, "expected bool, found 2"),
    ("SOLVER.MOMENTUM", 1.5, "at least 0 and at most 1; found 1.5"),
    ("SOLVER.BETAS", [0.9, 1], "expected a number at least 0 and below 1; found 1.0"),
    ("SOLVER.LR_DECAY_STAGES", 150, "expected a list such as [150, 180, 210], found 150"),
    ("SOLVER.LR_DECAY_STAGES", ["a"], "expected int, found 'a'"),
    ("SOLVER.LR_DECAY_STAGES", [180, 150], "expected epochs in ascending order; found [180, 150]"),
    ("SOLVER.AMP", "float16", "expected one of none, bf16, fp16, auto; found 'float16'"),
    ("EA.KIND", "bass", "nearest: base"),
    ("EA.TEMPERATURE", -1, "expected a number greater than 0 and at most 10000; found -1.0"),
    ("DISTILLER.t", 0, "expected a number greater than 0 and at most 10000; found 0.0"),
    ("EA.UPPER_BOUND", "log_d", "expected one of log_c; found 'log_d'; nearest: log_c"),
    ("EA.UPPER_BOUND", [1], "expected float or str, found [1]"),
    ("DISTILLER.TEACHER_INPUT_SIZE", 1.5, "expected int, found 1.5"),
    ("KD.TEMPERATURE", 0, "expected a number greater than 0 and at most 10000; found 0.0"),
    ("DISTILLER.TYPE", "DDK", "unknown method 'DDK'; nearest: "),
    ("CTKD.VARIANT", "globall", "expected one of global, instance; found 'globall'"),
    ("DATASET.TRAIN_FRACTION", 0, "expected a number greater than 0 and at most 1"),
    ("KD", 3, "expected keys below it (TEMPERATURE, LOSS), found 3"),
    ("KD.LOSS", None, "expected keys below it (CE_WEIGHT, KD_WEIGHT, REGRESSION_WEIGHT), found None"),
])
def test_a_wrong_value_is_reported_with_its_file_key_and_what_was_expected(write, key, given, expected):
    message = failure(None, [key, given])
    assert message.startswith(f"command line: {key}: ") and expected in message
    number = isinstance(given, str) and (given.startswith(".") or given.isdigit())
    tree = yaml.safe_load(given) if number else given
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = write("a.yaml", yaml.safe_dump(tree))
    message = failure(write("child.yaml", "_BASE_: a.yaml\nSOLVER: {BATCH_SIZE: 32}\n"))
    assert message.startswith(f"{path}: {key}: ") and expected in message


@pytest.mark.parametrize(("key", "expected"), [
    ("DKD.BTEA", "command line: unknown key DKD.BTEA; nearest: DKD.BETA"),
    ("SOLVER.EPOCH", "command line: unknown key SOLVER.EPOCH; nearest: SOLVER.EPOCHS"),
    ("BATCH_SIZE", "SOLVER.BATCH_SIZE"),
    ("ZZZ", "unknown key ZZZ; known: AKL, AT, "),
    ("SOLVER.LR.X", "SOLVER.LR: expected float, found {'X': 1}"),
    ("solver.epochs", "unknown key solver.epochs; nearest: SOLVER.EPOCHS"),
    ("", "unknown key ''"),
    ("..", "unknown key ''"),
])
def test_an_unknown_key_is_reported_with_the_nearest_ones(key, expected):
    assert expected in failure(None, [key, "1"])


def test_the_file_that_holds_an_unknown_key_is_named(write):
    write("base.yaml", "DKD: {BTEA: 6.0}\n")
    assert "base.yaml: unknown key DKD.BTEA; nearest: DKD.BETA" in failure(write("a.yaml", "_BASE_: base.yaml\n"))
    assert "b.yaml: unknown key 1" in failure(write("b.yaml", "1: 2\n"))
    assert "c.yaml: unknown key None" in failure(write("c.yaml", "~: 2\n"))
    assert failure(write("d.yaml", "DKD.BETA: 2\n")).endswith("keys have no dots in a file; write DKD: {BETA: ...}")


def test_a_list_emptied_by_a_base_still_wants_whole_numbers(write):
    write("base.yaml", "SOLVER: {LR_DECAY_STAGES: []}\n")
    assert "expected int, found 'a'" in failure(write("a.yaml", "_BASE_: base.yaml\nSOLVER: {LR_DECAY_STAGES: [a]}\n"))


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opts", [
    ["SOLVER.LR", "0.2", "SOLVER.LR_DECAY_STAGES", "[3, 5]"],
    ["SOLVER.LR=0.2", "SOLVER.LR_DECAY_STAGES=[3,5]"],
    ["SOLVER.LR=0.2", "SOLVER.LR_DECAY_STAGES", "(3, 5)"],
    ["SOLVER", "{LR: 0.2, LR_DECAY_STAGES: [3, 5]}"],
    ("SOLVER.LR", 0.2, "SOLVER.LR_DECAY_STAGES", (3, 5)),
])
def test_overrides_as_pairs_and_with_an_equals_sign(opts):
    cfg = load_cfg(None, opts)
    assert (cfg.SOLVER.LR, cfg.SOLVER.LR_DECAY_STAGES) == (0.2, [3, 5])


@pytest.mark.parametrize("name", ["007", "1e3", "on", "2024-01-01", "null", "[a", "a=b", "a: b", "", "{seed}"])
def test_text_on_the_command_line_stays_as_it_is_typed(name):
    assert load_cfg(None, ["EXPERIMENT.NAME", name]).EXPERIMENT.NAME == name
    assert load_cfg(None, [f"EXPERIMENT.NAME={name}"]).EXPERIMENT.NAME == name


def test_a_key_without_a_value_is_refused():
    assert "command line: SOLVER.EPOCHS: a value must follow" in failure(None, ["SOLVER.LR", "0.1", "SOLVER.EPOCHS"])
    assert "SOLVER.LR: found spaces around =; write KEY VALUE" in failure(None, ["SOLVER.LR", "=", "0.1"])
    assert "a list is one word; quote it" in failure(None, ["SOLVER.STEPS", "[1,", "2]"])


def test_an_override_list_is_left_as_it_was():
    opts = ["SOLVER.LR", "0.1"]
    load_cfg(None, opts)
    assert opts == ["SOLVER.LR", "0.1"]


# --- spellings -----------------------------------------------------------------------------------------------------


def test_spellings_of_forks_are_accepted(write):
    fork = "DISTILLER: {TYPE: KD, EA: 1, t: 2}\nEXPERIMENT: {LOGIT_STAND: True}\nSOLVER: {TRAINER: ours}\n"
    cfg = load_cfg(write("a.yaml", fork))
    assert (cfg.DISTILLER.TYPE, cfg.DISTILLER.EA, cfg.EA.TEMPERATURE, cfg.DISTILLER.LS) == ("EA-KD", True, 2.0, True)
    assert load_cfg(None, ["DISTILLER.TYPE", "mlkd"]).DISTILLER.TYPE == "MLD"
    assert load_cfg(None, ["DISTILLER.TYPE", "ea-kd_OURS"]).DISTILLER.TYPE == "EA-MLD"
    assert load_cfg(None, ["DISTILLER.TYPE", "ea-dkd"]).DISTILLER.EA is True


def test_of_two_spellings_the_one_read_last_wins(write):
    path = write("a.yaml", "DISTILLER: {t: 2.0}\nEXPERIMENT: {LOGIT_STAND: True}\n")
    cfg = load_cfg(path, ["EA.TEMPERATURE", "4", "DISTILLER.LS", "False"])
    assert (cfg.EA.TEMPERATURE, cfg.DISTILLER.LS) == (4.0, False)
    assert load_cfg(None, ["EA.TEMPERATURE", "4", "DISTILLER.t", "2"]).EA.TEMPERATURE == 2.0


# --- dumping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opts", [
    [],
    ["DISTILLER.TYPE", "EA-DKD", "DISTILLER.LS", "1", "EA.UPPER_BOUND", "100", "SOLVER.WEIGHT_DECAY", "1e-5"],
    ["DISTILLER.t", "2", "EA.TEMPERATURE", "4", "EXPERIMENT.NAME", "007: {x}", "SOLVER.LR_DECAY_STAGES", "[]"],
    ["DISTILLER.TYPE", "KD", "DISTILLER.EA", "1", "DISTILLER.TEACHER", "timm:vit_base_patch16_224"],
])
def test_a_dumped_tree_loads_to_an_equal_tree(write, opts):
    cfg = load_cfg(None, opts)
    again = load_cfg(write("dump.yaml", dump_cfg(cfg)))
    assert again == cfg and dump_cfg(again) == dump_cfg(cfg)


# --- anything at all -----------------------------------------------------------------------------------------------

KEYS = st.one_of(st.sampled_from([*flatten(get_cfg()), *get_cfg(), "_BASE_", "LR", "t"]), st.text(max_size=6))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.binary(max_size=3), st.text(max_size=8),
    st.sampled_from(["1e-4", "none", "None", "log_c", "EA-KD", "(1, 2)", "nan", "9" * 400, "1e999"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(path=None, opts=()):
    try:
        load_cfg(path, opts)
    except UserError as error:
        assert str(error)


@FUZZ
@given(tree=st.dictionaries(st.sampled_from(list(get_cfg())), st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_any_tree_loads_or_is_a_users_error(write, tree):
    nested = {}
    for node, children in tree.items():
        nested[node] = {key.removeprefix(f"{node}."): value for key, value in children.items()}
    loads_or_says_why(write("fuzz.yaml", yaml.safe_dump(nested)))


@FUZZ
@given(text=st.one_of(st.text(max_size=40), st.text("aA_:{}[],-?!&*<>|%@'\"\\#\n\t 01.e", max_size=40)))
def test_any_text_loads_or_is_a_users_error(write, text):
    path = write("fuzz.yaml", "")
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    loads_or_says_why(path)
    loads_or_says_why(write("child.yaml", f"_BASE_: {yaml.safe_dump(text, allow_unicode=False)}"))


@FUZZ
@given(opts=st.lists(st.one_of(KEYS, LEAVES, VALUES, st.builds("{}={}".format, KEYS, LEAVES)), max_size=6))
def test_any_overrides_load_or_are_a_users_error(opts):
    loads_or_says_why(None, opts)


def test_false_switches_off_what_an_earlier_file_switched_on_under_either_name(write):
    write("base.yaml", "EXPERIMENT: {LOGIT_STAND: True}\n")
    child = write("child.yaml", "_BASE_: base.yaml\nEXPERIMENT: {LOGIT_STAND: False}\n")
    assert load_cfg(child).DISTILLER.LS is False
    for cfg in (load_cfg(child), load_cfg(child, ["DISTILLER.LS", "True"]),
                load_cfg(write("own.yaml", "EXPERIMENT: {LOGIT_STAND: True}\n"), ["DISTILLER.LS", "False"])):
        assert load_cfg(write("dumped.yaml", dump_cfg(cfg))) == cfg
