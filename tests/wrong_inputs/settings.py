"""Wrong settings: YAML files, overrides, and values of every key."""


from mdistiller.config.keys import GENERAL
from tests.wrong_inputs.case import config, folder, pipe, train, typed

NAMES = "abcdefghi"
BOMB = "SOLVER:\n  LR:\n    - &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"    - &{name} [{','.join(9 * [f'*{below}'])}]\n" for below, name in zip(NAMES, NAMES[1:], strict=False))
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(9 * [f'*{below}'])}]}}\n" for below, name in zip(NAMES, NAMES[1:], strict=False))

FILES = [
    typed("train", "--cfg none.yaml", "none.yaml: no such config file; nearest: configs/digits/none"),
    typed("train", "--cfg a.yaml", "a.yaml: cannot be read: Is a directory", {"a.yaml": folder}, "config: a folder"),
    typed("train", "--cfg a.yaml", "a.yaml: cannot be read: not a regular file", {"a.yaml": pipe}, "config: a pipe"),
    typed("train", f"--cfg {'x' * 300}.yaml", "no such config file", name="config: a name too long"),
    config("binary", b"\xff\xfe\x00\x01", "a.yaml: cannot be read"),
    config("a NUL", b"SOLVER: {LR: 0.1}\0", "a.yaml:"),
    config("Latin-1", "EXPERIMENT: {TAG: é}".encode("latin-1"), "a.yaml: cannot be read"),
    config("UTF-16", "SOLVER: {LR: 0.1}".encode("utf-16"), "a.yaml: cannot be read"),
    config("a list", "- SOLVER\n- DATASET\n", "expected a mapping of keys, found list"),
    config("an empty list", "[]", "expected a mapping of keys, found list"),
    config("a word", "SOLVER", "expected a mapping of keys, found str"),
    config("a number", "3", "expected a mapping of keys, found int"),
    config("false", "false", "expected a mapping of keys, found bool"),
    config("a tab", "SOLVER:\n\tLR: 0.1\n", "a.yaml:2: not valid YAML"),
    config("wrong indentation", "SOLVER:\n  LR: 0.1\n EPOCHS: 3\n", "a.yaml:3: not valid YAML"),
    config("a child without indentation", "SOLVER:\nLR: 0.1\n", "SOLVER: expected keys below it"),
    config("a brace left open", "SOLVER: {LR: 0.1\n", "not valid YAML"),
    config("a quote left open", "EXPERIMENT: {NAME: 'a}\n", "not valid YAML"),
    config("a key twice", "SOLVER: {LR: 0.1}\nSOLVER: {LR: 0.2}\n", "'SOLVER' is written twice"),
    config("two documents", "SOLVER: {LR: 0.1}\n---\nSOLVER: {LR: 0.2}\n", "not valid YAML"),
    config("an unknown alias", "SOLVER: *solver\n", "not valid YAML"),
    config("a list as key", "? [a, b]\n: 1\n", "not valid YAML"),
    config("a number as key", "1: 2\n", "unknown key 1"),
    config("null as key", "~: 2\n", "unknown key None"),
    config("deep brackets", "a: " + "[" * 3000, "not valid YAML"),
    config("!!python/object/apply", "SOLVER: !!python/object/apply:os.system ['touch harmed']\n", "not valid YAML"),
    config("!!python/object/new", "SOLVER: !!python/object/new:os.system ['touch harmed']\n", "not valid YAML"),
    config("!!python/name", "SOLVER: !!python/name:os.system\n", "not valid YAML"),
    config("!!python/module", "SOLVER: !!python/module:os\n", "not valid YAML"),
    config("!!python/tuple", "SOLVER: {LR_DECAY_STAGES: !!python/tuple [1, 2]}\n", "not valid YAML"),
    config("!unknown", "SOLVER: !mine {LR: 0.1}\n", "not valid YAML"),
    config("!!bool", "SOLVER: {NESTEROV: !!bool maybe}\n", "not valid YAML"),
    config("!!timestamp", "SOLVER: {LR: !!timestamp x}\n", "not valid YAML"),
    config("!!binary", "SOLVER: {LR: !!binary '='}\n", "SOLVER.LR: expected float, found b''"),
    config("a set", "DATASET: !!set {TYPE, ROOT}\n", "DATASET: expected keys below it"),
    config("its own _BASE_", "_BASE_: a.yaml\n", "inherits from itself"),
    config("a circle of _BASE_", "_BASE_: b.yaml\n", "inherits from itself", b="_BASE_: c.yaml", c="_BASE_: a.yaml"),
    config("a missing _BASE_", "_BASE_: ../none.yaml\n", "_BASE_: no such file"),
    config("a folder as _BASE_", "_BASE_: .\n", "_BASE_: no such file"),
    config("an empty _BASE_", "_BASE_: ''\n", "_BASE_: no such file"),
    config("a list of _BASE_ with a hole", "_BASE_: [b.yaml, c.yaml]\n", "_BASE_: no such file: c.yaml", b=""),
    config("a list of _BASE_ with a number", "_BASE_: [b.yaml, 3]\n", "_BASE_: expected the path of a YAML file", b=""),
    config("a _BASE_ that is a mapping", "_BASE_: {b: c}\n", "_BASE_: expected the path of a YAML file"),
    config("a _BASE_ beyond Python's texts", f"_BASE_: 0x{'F' * 4200}\n", "found an integer of 16,800 bits"),
    config("_base_ in small letters", "_base_: b.yaml\n", "unknown key _base_; nearest: _BASE_"),
    config("a bomb of aliases", BOMB, "its aliases expand to more than"),
    config("a bomb of merges", MERGES, "its aliases expand to more than"),
    config("an alias within itself", "SOLVER: &a {LR: *a}\n", "not valid YAML: an alias inside the node"),
    config("a _BASE_ with a NUL", '_BASE_: "b\\0.yaml"\n', "_BASE_: no such file"),
    config("an endless _BASE_", f"_BASE_: {'b' * 400}\n", "_BASE_: no such file"),
    config("a wrong _BASE_", "_BASE_: b.yaml\n", "b.yaml: unknown key DKD.BTEA; nearest: DKD.BETA",
           b="DKD: {BTEA: 6.0}"),
    config("a binary _BASE_", "_BASE_: b.yaml\n", "b.yaml: cannot be read", b=b"\xff\x00"),
    config("_BASE_ below a key", "SOLVER: {_BASE_: b.yaml}\n", "unknown key SOLVER._BASE_"),
    config("an unknown node", "SOLVR: {LR: 0.1}\n", "unknown key SOLVR"),
    config("an unknown key", "SOLVER: {LRR: 0.1}\n", "unknown key SOLVER.LRR; nearest: SOLVER.LR"),
    config("an unknown key below a node", "DATASET: {TEST: {BATCHSIZE: 4}}\n", "nearest: DATASET.TEST.BATCH_SIZE"),
    config("an unknown key of a method", "KD: {LOSS: {KD_WEIHGT: 1}}\n", "nearest: KD.LOSS.KD_WEIGHT"),
    config("a key in small letters", "solver: {lr: 0.1}\n", "unknown key solver; nearest: SOLVER"),
    config("Chinese", "求解: {学习率: 0.1}\n", "unknown key 求解"),
    config("an emoji as value", "SOLVER: {LR: 🔥}\n", "SOLVER.LR: expected float"),
    config("a look-alike of SGD", "SOLVER: {TYPE: ЅGD}\n", "SOLVER.TYPE: expected one of"),
    config("not a number", "SOLVER: {LR: .nan}\n", "SOLVER.LR: expected float, found nan"),
    config("infinite", "SOLVER: {LR: .inf}\n", "SOLVER.LR: expected float, found inf"),
    config("minus infinite", "SOLVER: {LR: -.inf}\n", "SOLVER.LR: expected float, found -inf"),
    config("a float beyond floats", "SOLVER: {LR: 1e999}\n", "SOLVER.LR: expected float"),
    config("an int beyond floats", f"SOLVER: {{LR: 1{'0' * 400}}}\n", "SOLVER.LR: expected float"),
    *(config(f"{key} beyond Python's texts", f"{node}: {{{key}: {left}0x{'F' * 4200}{right}}}\n", says)
      for node, key, left, right, says in (
          ("DISTILLER", "STUDENT", "[", "]", "DISTILLER.STUDENT: expected str, found [an integer of 16,800 bits]"),
          ("CONFIG", "DEFAULTS", "", "", "expected one of mdistiller, ls, wkd; found '0xFFFFFFFF"),
      )),
    config("a method's name of 5,000 letters", f"DISTILLER: {{TYPE: {'x' * 5000}}}\n", "SRKL, TTM, VID, WKD, WTTM"),
    config("an int beyond Python's texts", f"SOLVER: {{EPOCHS: 1{'0' * 5000}}}\n", "a.yaml"),
    config("a huge size", "DATASET: {TYPE: digits, IMAGE_SIZE: 1000000000}\n", "DATASET.IMAGE_SIZE"),
    config("a list with a hole", "SOLVER: {LR_DECAY_STAGES: [1, , 2]}\n", "not valid YAML"),
    config("stages of floats", "SOLVER: {LR_DECAY_STAGES: [1.5]}\n", "SOLVER.LR_DECAY_STAGES: expected int"),
    config("stages that fall", "SOLVER: {LR_DECAY_STAGES: [5, 3]}\n", "SOLVER.LR_DECAY_STAGES: expected epochs"),
    config("stages within stages", "SOLVER: {LR_DECAY_STAGES: [[5]]}\n", "SOLVER.LR_DECAY_STAGES: expected int"),
    config("a NUL in a text", 'EXPERIMENT: {NAME: "a\\0b"}\nDATASET: {TYPE: digits}\n', "EXPERIMENT.NAME"),
    config("a NUL in a path", 'DATASET: {TYPE: tiny_imagenet, ROOT: "a\\0b"}\n', "DATASET.ROOT"),
    config("half a character", 'EXPERIMENT: {NAME: "\\ud800"}\nDATASET: {TYPE: digits}\n', "EXPERIMENT.NAME"),
]

OVERRIDES = [
    train("a key alone", "SOLVER.LR", says="SOLVER.LR: a value must follow the key"),
    train("three words", "SOLVER.LR", 0.1, "SOLVER.EPOCHS", says="SOLVER.EPOCHS: a value must follow"),
    train("an unknown node", "SOLVR.LR", 0.1, says="unknown key SOLVR"),
    train("an unknown key", "SOLVER.EPOCH", 3, says="nearest: SOLVER.EPOCHS"),
    train("a key without its node", "BATCH_SIZE", 3, says="SOLVER.BATCH_SIZE"),
    train("a key too deep", "SOLVER.LR.X", 3, says="SOLVER.LR: expected float"),
    train("an empty key", "", 3, says="unknown key "),
    train("dots alone", "..", 3, says="unknown key "),
    train("an equals sign alone", "=", says="unknown key "),
    train("a value for a node", "SOLVER", 3, says="SOLVER: expected keys below it"),
    train("a list for a node", "SOLVER", "[1]", says="SOLVER: expected keys below it"),
    train("a key within a node", "SOLVER", "{LRR: 1}", says="unknown key SOLVER.LRR"),
    train("an empty value", "SOLVER.LR=", says="SOLVER.LR: expected float, found ''"),
    train("1,5 for 1.5", "SOLVER.LR", "1,5", says="SOLVER.LR: expected float, found '1,5'"),
    train("a tag", "SOLVER.LR", "!!python/name:os.system", says="SOLVER.LR: expected float"),
    train("YAML left open", "SOLVER.LR_DECAY_STAGES", "[1, 2", says="SOLVER.LR_DECAY_STAGES: expected a list such as"),
    train("a parenthesis of texts", "SOLVER.LR_DECAY_STAGES", "(a, b)", says="SOLVER.LR_DECAY_STAGES: expected int"),
    train("bytes that are no UTF-8", "EXPERIMENT.NAME", "caf\udce9", says="EXPERIMENT.NAME"),
    train("a name too long for a folder", "EXPERIMENT.NAME", "n" * 300, says="File name too long"),
    train("_BASE_", "_BASE_", "b.yaml", says="unknown key _BASE_"),
    train("a method near one", "DISTILLER.TYPE", "EA-KDD", says="nearest: EA-KD"),
    train("a method far from any", "DISTILLER.TYPE", "zzz", says="DISTILLER.TYPE: unknown method 'zzz'"),
    train("EA twice", "DISTILLER.TYPE", "EA-EA-KD", says="DISTILLER.TYPE: unknown method"),
    train("a method of spaces", "DISTILLER.TYPE", " ", says="DISTILLER.TYPE: unknown method"),
    train("a dataset near one", "DATASET.TYPE", "cifar1000", says="nearest: cifar100"),
    train("a dataset far from any", "DATASET.TYPE", "mnist", says="DATASET.TYPE: unknown data set 'mnist'"),
    train("an empty dataset", "DATASET.TYPE", "", says="DATASET.TYPE: unknown data set ''"),
    train("a device near one", "DEVICE", "gpu", says="DEVICE: 'gpu' cannot be used here"),
    train("a device not there", "DEVICE", "cuda:99", says="DEVICE: 'cuda:99' cannot be used here"),
    train("a device without numbers", "DEVICE", "meta", says="DEVICE: 'meta' cannot be used here"),
    train("a device of a library", "DEVICE", "hpu", says="DEVICE: 'hpu' cannot be used here"),
    train("an empty device", "DEVICE", "", says="DEVICE: '' cannot be used here"),
    train("crops of a dataset in memory", "DATASET.AUGMENTATION", "flip_crop", says="expected one of crop_flip"),
]


def _wrong_type(key):
    """A value of a type that the key does not take, and what the error says."""
    kinds = GENERAL[key].kinds
    if kinds == (str,):
        return None  # texts take every word of a command line; see TEXTS
    given = {bool: "perhaps", int: "2.5", float: "fast", list: "7"}[kinds[0]] if len(kinds) == 1 else "[1]"
    expected = "a list such as" if list in kinds else " or ".join(kind.__name__ for kind in kinds)
    return given, f"{key}: expected {expected}"


def _outside(key):
    """Numbers just outside the range of a key, as it is declared."""
    declared = GENERAL[key]
    if declared.above is not None or declared.least is not None:
        yield (declared.least - 1 if declared.least is not None else declared.above), "below"
    if declared.most is not None or declared.below is not None:
        yield (2 * declared.most + 1 if declared.most is not None else declared.below), "above"


def _given(key, value):
    return f"[{value!r}]" if list in GENERAL[key].kinds else repr(value)


NUMBERS = [key for key, one in GENERAL.items() if {int, float} & {*one.kinds, one.item} and not one.choices]
TYPES = [train(f"{key} of a wrong type", key, wrong[0], says=wrong[1])
         for key in GENERAL if (wrong := _wrong_type(key))]
TEXTS = [config(f"{key} is a list", f"{key.replace('.', ': {')}: [a]{'}' * key.count('.')}\n", f"{key}: expected str")
         for key, one in GENERAL.items() if one.kinds == (str,)]
OUTSIDE = [train(f"{key} {where} its range", key, _given(key, value), says=f"{key}: expected a number")
           for key in NUMBERS for value, where in _outside(key)]
ENDLESS = [config(f"{key} beyond Python's texts", f"{key.replace('.', ': {')}: 0x{'F' * 4200}{'}' * key.count('.')}\n",
                  f"{key}: expected") for key in ("SOLVER.LR", "EXPERIMENT.SEED", "SOLVER.STEPS")]
CHOSEN = [train(f"{key} of no choice", key, "zzz", says=f"{key}: expected one of {one.choices[0]}")
          for key, one in GENERAL.items() if one.choices]

CASES = [*FILES, *OVERRIDES, *TYPES, *TEXTS, *OUTSIDE, *ENDLESS, *CHOSEN]
