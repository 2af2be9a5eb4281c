"""How other code bases spell what this project reads: their keys, their names of methods, their defaults. No torch.

Each table says what a spelling of the authors' own files means here: another key, nothing at all, or one value alone.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mdistiller.config.files import plain
from mdistiller.config.words import Typed, shown
from mdistiller.errors import UserError
from mdistiller.registry import ea_name, split_ea

ABSENT = object()

RENAMED = {  # their key: ours
    "SOLVER.LR_SCHEDULER": "SOLVER.SCHEDULE",  # GDKD
    "SOLVER.LR_MIN": "SOLVER.MIN_LR",
    "SOLVER.SGD_NESTEROV": "SOLVER.NESTEROV",
    "SOLVER.SGD.MOMENTUM": "SOLVER.MOMENTUM",  # mdistiller-ddp, as the following
    "SOLVER.ADAM.BETAS": "SOLVER.BETAS",
    "SOLVER.ADAM.EPSILON": "SOLVER.EPS",
    "SOLVER.GRAD_CLIP": "SOLVER.CLIP_NORM",
    "SOLVER.SCHEDULE.MULTISTEP.STAGES": "SOLVER.LR_DECAY_STAGES",
    "SOLVER.SCHEDULE.MULTISTEP.RATE": "SOLVER.LR_DECAY_RATE",
    "DIST.T": "DIST.TEMPERATURE",
    "DIST.CE_WEIGHT": "DIST.LOSS.CE_WEIGHT",
    "LSKD.TEMPERATURE": "KD.TEMPERATURE",
    "LSKD.CE_WEIGHT": "KD.LOSS.CE_WEIGHT",
    "LSKD.KD_WEIGHT": "KD.LOSS.KD_WEIGHT",
    **{f"DKDMOD.{word}": f"DKD.{word}" for word in ("CE_WEIGHT", "ALPHA", "BETA", "T", "WARMUP")},
    "DATASET.INPUT_SIZE": "DATASET.IMAGE_SIZE",  # WKD
    "SIMKD.CE_WEIGHT": "SIMKD.LOSS.CE_WEIGHT",  # MonotonicRankDistillation
    "M": "SDD.M",  # SDD
    "EA.FOREGROUND_ONLY": "DETECTION.FOREGROUND_ONLY",  # beside the other settings of EA
}

WITHOUT_EFFECT = {  # CAT-KD, WKD, GDKD, mdistiller-ddp and MonotonicRankDistillation, in this order
    "if_test", "device", "CAT_KD.CAMs_Nums", "CAT_KD.Strategy", "DKD.test_weight",
    "DATASET.NUM_CLASSES", "DATASET.PREFETCH", "WKD.INPUT_SIZE", "WKD.EPS", "WKD.HINT_LAYER", "WKD.MEAN_COV_RATIO",
    "WKD.PROJECTOR", "WKD.SPATIAL_GRID", "KD.LOSS.IR_WEIGHT",
    "LOG.WANDB_MODEL_LOG", "LOG.WANDB_MODEL_LOG_FREQ", "LOG.ENABLE_PROGRESS_BAR", "DKDMOD.MASK_MAGNITUDE",
    "EXPERIMENT.DDP", "SOLVER.SCHEDULE.COSINE", "SIMKD.INPUT_SIZE",
}

ONE_VALUE = {  # keys that change the training where they hold another value, which is not offered here
    **dict.fromkeys(("if_Augment", "if_useFactor", "if_self_train", "CAT_KD.IF_BINARIZE",
                     "CAT_KD.IF_OnlyTransferPartialCAMs", "CAT_KD.IF_ZIP", "DATASET.REDUCTION", "DATASET.AUTO_AUG",
                     "DATASET.CUT_OUT", "DATASET.ENHANCE_AUGMENT", "EXPERIMENT.AUG"), False),
    "CAT_KD.teacher_dir": None, "CAT_KD.student_dir": None,
    "DATASET.RESERVED_RATE": 1, "DATASET.RESERVED_CLASS_NUM": 100, "DKD.if_vanilla": True,
    "WKD.LOSS.WKD_FEAT_WEIGHT": 0,
    "SIMKD.FEAT_WEIGHT": 1,  # the only weight that its code gives it, whatever its files say
    "SOLVER.SCHEDULE.TYPE": "MULTISTEP",
    "DKD.LOSS_TYPE": "kl", "DKDMOD.KL_TYPE": "forward", "DKDMOD.STRATEGY": "target",
}

LS_DEFAULTS = {"KD.LOSS.CE_WEIGHT": 0.1, "KD.LOSS.KD_WEIGHT": 9.0, "KD.TEMPERATURE": 2.0}

LS_WEIGHTED = {  # in successors of that code: what --base-temp sets, and what --kd-weight multiplies, with its default
    "RLD": (["RLD.T", "RLD.ALPHA_T"], {"RLD.ALPHA": 1.0, "RLD.BETA": 8.0}),
    "SDD dkd": (["DKD.T"], {"DKD.ALPHA": 1.0, "DKD.BETA": 8.0}),
}

METHODS: Mapping[str, Mapping[str, Any]] = {  # their DISTILLER.TYPE, in upper case: what it sets here, as defaults
    "SDD_DKD": {"DISTILLER.TYPE": "SDD", "SDD.LOSS": "dkd"},
    "GL_DKD": {"DISTILLER.TYPE": "SDD", "SDD.LOSS": "dkd"},  # its earlier name
    "SDD_NKD": {"DISTILLER.TYPE": "SDD", "SDD.LOSS": "nkd"},
    "GLD_NKD": {"DISTILLER.TYPE": "SDD", "SDD.LOSS": "nkd"},  # its earlier name
    "DKDMOD": {"DISTILLER.TYPE": "DKD"},  # with the values of ONE_VALUE it is DKD
    "LSKD": {"DISTILLER.TYPE": "KD", "DISTILLER.LS": True, **LS_DEFAULTS},
}

NOT_HERE = {  # in upper case: the nearest method that is here, and what the other one does
    "KD_AUG": ("KD", "it also distils a strongly augmented view"),
    "DKD_AUG": ("DKD", "it also distils a strongly augmented view"),
    "MLKD_NOAUG": ("MLD", "it has no strongly augmented view"),
    "GDKD": ("DKD", "it splits the classes at the teacher's most likely ones instead of at the target"),
    "GDKD3": ("DKD", "it splits the classes into three parts at the teacher's most likely ones"),
    "GDKDAUTOW": ("DKD", "it splits the classes at the teacher's most likely ones and sets its own weights"),
    "SGDKD": ("DKD", "it splits the classes by the teacher's probabilities instead of at the target"),
    "ADKD": ("DKD", "it sets the weights of the two terms by itself"),
    "MY": ("RLD", "it is an earlier form of it with a choice of masks"),
    "REVISION": ("KD", "it corrects the teacher's wrong probabilities by the label"),
    "SWAP": ("KD", "it swaps the teacher's wrong prediction with that of the label"),
    "RC": ("KD", "it adds a term for the teacher's ranks"),
    "SONLY": ("NONE", "it trains the student alone"),
    "WKD-F": ("WKD", "it compares feature maps instead of logits"),
    "WKD_F": ("WKD", "it compares feature maps instead of logits"),
    "USKD": ("NKD", "it distils a network into itself, without a teacher"),
}

OTHERWISE = {  # values of their keys that have another form here, or another meaning: what to say of them
    "DATASET.TYPE": {
        "tiny-imagenet": "GDKD's files mean Tiny-ImageNet at 224 pixels with networks pretrained on ImageNet, which an "
                         "imagefolder can be; tiny_imagenet is at 64 pixels with networks for that size"},
    "SOLVER.SCHEDULE.TYPE": {
        "COSINE": "it is SOLVER.SCHEDULE cosine here, with SOLVER.WARMUP_EPOCHS (COSINE.WARMUP, 5 where left out) and "
                  "SOLVER.MIN_LR (LR times COSINE.RATE, 0.0001 where left out)"},
}
LEFT_OUT = {  # methods as other code bases name them, in upper case: keys that a file may leave out, and what it means
    "KD": {"KD": "means mdistiller's defaults, temperature 4 and weights 0.1 and 0.9; about one fork of it in five has "
                 "others, and CONFIG.DEFAULTS ls gives those of logit standardization's code, 2, 0.1 and 9"},
    "NKD": {"NKD": "means T 1 and GAMMA 1.5, as its authors and CRLD's code do; two other code bases mean T 4"},
    "MLKD": {
        "KD": "means mdistiller's defaults; CONFIG.DEFAULTS ls gives those of the code of logit standardization, from "
              "which the name MLKD comes",
        "SOLVER.TRAINER": "means two views, as all values of it here; a code base without the trainers ours and aug "
                          "means one"},
    "WKD": {"WKD": "means its authors' settings for one pair of networks; other code bases with WKD have others, and "
                   "one of them another loss"},
    "NONE": {"DISTILLER.STUDENT": "means resnet32, as in mdistiller; that is the network to train, not the teacher"},
}
STATED = ("SOLVER.BATCH_SIZE", "SOLVER.EPOCHS", "SOLVER.LR", "SOLVER.WEIGHT_DECAY")  # in every file of mdistiller
COSINE_END = 1e-4  # of the learning rate in GDKD's code, where a file leaves it out
DEFAULTS_KEY = "CONFIG.DEFAULTS"
DEFAULTS = {  # of code bases, by the value of DEFAULTS_KEY
    "mdistiller": {},
    "ls": LS_DEFAULTS,
    "wkd": {"SOLVER.NESTEROV": True, "WKD.TEMPERATURE": 4.0, "WKD.LOSS.WKD_LOGIT_WEIGHT": 1.0,
            "WKD.LOSS.COSINE_DECAY_EPOCH": 0},  # of its authors; no file of theirs can do without the momentum
}
TELLING = {"WKD.LOSS.WKD_FEAT_WEIGHT": "wkd"}  # keys that one code base alone has, and whose files state


def translated(tree: Mapping, source: str) -> tuple[dict, list[str]]:
    """A YAML tree in this project's spelling, and the keys that were left out because they change nothing here.

    Raises UserError for a value of another code base that would train something else there.
    """
    tree = _copy(tree)
    ignored = [name for name in sorted(WITHOUT_EFFECT) if _take(tree, name) is not ABSENT]
    for name, forms in OTHERWISE.items():
        value = plain(found(tree, name))
        if isinstance(value, str) and value in forms:
            raise UserError(f"{source}: {name}: {value}: {forms[value]}")
    for name, code_base in TELLING.items():
        if found(tree, name) is not ABSENT and found(tree, DEFAULTS_KEY) is ABSENT:
            _put(tree, DEFAULTS_KEY, code_base)
    for name, only in ONE_VALUE.items():
        value = plain(_take(tree, name))
        if value is not ABSENT and not _equal(value, only):
            raise UserError(f"{source}: {name}: what it changes is not offered here; expected {only}, found "
                            f"{shown(value)}")
    _translate_names(tree)
    _translate_factor(tree)
    if found(tree, "SOLVER.LR_SCHEDULER") == "cosine" and found(tree, "SOLVER.LR_MIN") is ABSENT:
        _put(tree, "SOLVER.LR_MIN", COSINE_END)
    for theirs, ours in RENAMED.items():
        value = _take(tree, theirs)
        if value is not ABSENT:
            _put(tree, ours, Typed(value) if isinstance(value, str) else value)
    if (mixed := plain(found(tree, "EXPERIMENT.AMP"))) in (True, False):  # mdistiller-ddp
        _take(tree, "EXPERIMENT.AMP")
        _put(tree, "SOLVER.AMP", "fp16" if mixed else "none")
    return tree, ignored


def _translate_names(tree):
    """Methods and networks by their names here; what a method's name implies gives way to what is said."""
    method = found(tree, "DISTILLER.TYPE")
    sets = METHODS.get(split_ea(method)[0].upper(), {}) if isinstance(method, str) else {}
    for name, value in sets.items():
        if name == "DISTILLER.TYPE":
            _put(tree, name, ea_name(value) if split_ea(method)[1] else value)
        elif found(tree, name) is ABSENT:
            _put(tree, name, value)
    for name in ("DISTILLER.TEACHER", "DISTILLER.STUDENT"):
        network = found(tree, name)
        if isinstance(network, str) and network.endswith("_sdd"):  # SDD's name of a network whose maps it reads
            _put(tree, name, network.removesuffix("_sdd"))


def _translate_factor(tree):
    """In EA-KD's files the factor of DKD with DISTILLER.LS (not EXPERIMENT.LOGIT_STAND) is the weight of KD."""
    method, standardized = found(tree, "DISTILLER.TYPE"), plain(found(tree, "DISTILLER.LS"))
    weight, said = found(tree, "KD.LOSS.KD_WEIGHT"), found(tree, "DKD.LS_WEIGHT")
    if split_ea(str(method))[0].upper() == "DKD" and standardized == 1 and weight is not ABSENT and said is ABSENT:
        _put(tree, "DKD.LS_WEIGHT", weight)


def take_defaults(tree: dict, source: str) -> str | None:
    """The code base whose defaults a tree asks for, which is then no more in it; None where it asks for none.

    Raises UserError, naming `source`, for an unknown code base and for another key beside it.
    """
    value = _take(tree, DEFAULTS_KEY)
    if value is not ABSENT and not (isinstance(value, str) and value in DEFAULTS):
        raise UserError(f"{source}: {DEFAULTS_KEY}: expected one of {', '.join(DEFAULTS)}; found {shown(value)}")
    others = tree.get("CONFIG")
    if isinstance(others, dict) and others:
        raise UserError(f"{source}: unknown key CONFIG.{shown(next(iter(others)))}; nearest: {DEFAULTS_KEY}")
    return None if value is ABSENT else str(value)


def with_standardization(
    opts: Sequence[str], said: Mapping, standardize: bool, temperature: str | None, weight: str | None
) -> list[str]:
    """The overrides `opts` and what --logit-stand, --base-temp and --kd-weight of logit standardization's code set.

    `said` are all settings by dotted name; None is the default of that code. What `opts` say wins, except for weights
    that are multiplied, as in the codes that do so (LS_WEIGHTED). For DKD the weight multiplies both terms, and the
    temperature is DKD's, as in the paper of logit standardization; that code multiplies its weight into beta twice and
    leaves DKD.T. Raises UserError for the others without --logit-stand.
    """
    if not standardize:
        raise UserError("command line: --base-temp and --kd-weight belong to --logit-stand; expected it, too")
    temperature, weight = temperature or LS_DEFAULTS["KD.TEMPERATURE"], weight or LS_DEFAULTS["KD.LOSS.KD_WEIGHT"]
    method = split_ea(str(said.get("DISTILLER.TYPE", "")))[0].upper()
    method = f"SDD {said['SDD.LOSS']}" if method == "SDD" and "SDD.LOSS" in said else method
    temperatures, weights = LS_WEIGHTED.get(method, (["KD.TEMPERATURE"], {}))
    values, products = dict.fromkeys(temperatures, temperature), {}
    if method == "DKD":
        values = {"DKD.T": temperature, "DKD.LS_WEIGHT": weight}
    elif weights:
        products = {key: _product(weight, said.get(key, default), key) for key, default in weights.items()}
    else:
        values["KD.LOSS.KD_WEIGHT"] = weight
    first, last = ([f"{key}={value}" for key, value in one.items()] for one in (values, products))
    return ["EXPERIMENT.LOGIT_STAND=True", *first, *opts, *last]


def _product(weight, value, key):
    try:
        return float(weight) * float(value)
    except ValueError:
        raise UserError(f"command line: --kd-weight: expected a number and one in {key}, which it multiplies; found "
                        f"{shown(weight)} and {shown(value)}") from None


def not_here(name: str) -> str:
    """What to say of a method that another code base has and this one has not; "" for any other name."""
    nearest, difference = NOT_HERE.get(split_ea(str(name))[0].upper(), ("", ""))
    return f"it is not among the methods here; the nearest is {nearest}: {difference}" if nearest else ""


@cache
def warn(message: str) -> None:
    """Say something about a file, once."""
    logging.getLogger("mdistiller").warning(message)


def _copy(tree):
    return {word: _copy(value) if isinstance(value, Mapping) else value for word, value in tree.items()}


def _node(tree, name):
    """The node that a dotted key stands in, and its last word; None where the tree has no such node."""
    *nodes, last = name.split(".")
    for word in nodes:
        tree = tree.get(word) if isinstance(tree, dict) else None
    return (tree, last) if isinstance(tree, dict) else (None, last)


def found(tree: Mapping, name: str) -> Any:
    """The value of a dotted key in a tree, ABSENT where it has none."""
    node, last = _node(tree, name)
    return ABSENT if node is None else node.get(last, ABSENT)


def _take(tree, name):
    """The value of a key, which is then no more in the tree, nor is a node that it leaves empty."""
    node, last = _node(tree, name)
    value = ABSENT if node is None else node.pop(last, ABSENT)
    if value is not ABSENT and not node and "." in name:
        _take(tree, name.rpartition(".")[0])
    return value


def _put(tree, name, value):
    *nodes, last = name.split(".")
    for word in nodes:
        if not isinstance(tree.get(word), dict):
            tree[word] = {}
        tree = tree[word]
    tree[last] = value


def _equal(value, only):
    return value == only or (only is None and value in ("None", ""))
