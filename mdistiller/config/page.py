"""Writes the page docs/config.md, every key with its default, range and meaning, from the declarations."""

import html

from mdistiller.config.key import Key
from mdistiller.config.keys import GENERAL
from mdistiller.config.loading import load_methods, method_keys
from mdistiller.markdown import table

HEAD = """# Configuration keys

Written by `python -m mdistiller.config` from the declarations in `mdistiller/config/` and in the methods' own files.

In a YAML file a key such as `SOLVER.LR` is `SOLVER: {LR: 0.1}`; on the command line it is `SOLVER.LR 0.1` or
`SOLVER.LR=0.1`. What is said later wins: `DISTILLER.EA False` turns EA-KD into KD. `_BASE_` names the file, or the list
of files, from which a file inherits; in a list, later files win. In a path, `~` and `$VARIABLES` are expanded.
A number is decimal or begins with 0x, 0o or 0b. A leading zero is refused, since other programs read 010 as 8. A text
stays as it is written, so that the name 010 is 010.

Files of the public code bases of mdistiller, its forks, SDD, CAT-KD, WKD, RLD, CRLD and GDKD are read as they are
(`mdistiller/config/public.py`). Their names of methods and keys stand for those below. Keys without an effect here are
left out with a warning, and a value that would train something else there is refused. If a command names a config by
the path that it has there, the error names the file that is here.

A key that is not set has the default of the tables below, which is mdistiller's where mdistiller has the key.
`CONFIG: {DEFAULTS: ls}` gives the defaults of the public code of logit standardization instead (for KD the weights 0.1
and 9 and temperature 2), and `wkd` those of WKD's authors, with Nesterov's momentum. Files that state
WKD.LOSS.WKD_FEAT_WEIGHT are theirs, and get `wkd` by themselves. A warning names what a public file leaves out if other
code bases have other defaults for it; `CONFIG: {DEFAULTS: mdistiller}` ends this warning.

The options of their commands are read too:

- `tools/train.py --logit-stand --base-temp 2 --kd-weight 9` sets EXPERIMENT.LOGIT_STAND, and KD.TEMPERATURE and
  KD.LOSS.KD_WEIGHT, or DKD.T and DKD.LS_WEIGHT for DKD. For RLD, and for SDD with the loss of DKD, it sets the
  temperatures, and multiplies ALPHA and BETA by the weight.
- `tools/train.py --gpu N` (DEVICE cuda:N) and `--M` (SDD.M) are SDD's.
- `tools/eval.py` has `-m`, `--ckpt`, `-d` and `-bs`.
- For their other training commands (`tools/train_ours.py`, `train_mld.py`, `train_mlld.py`, `train_crld.py`,
  `train_origin.py`) use `tools/train.py`.
"""
METHODS = """
# Keys of the methods

A method reads its own node and the general nodes above. Some read the node of another method too.
"""


def page() -> str:
    """The text of docs/config.md."""
    return HEAD + _tables(GENERAL) + METHODS + _tables(method_keys())


def _tables(keys):
    nodes: dict[str, list[tuple[str, ...]]] = {}
    for name, key in keys.items():
        nodes.setdefault(name.split(".")[0] if "." in name else "Others", []).append(_row(name, key))
    head = ("key", "default", "values", "meaning")
    return "".join(f"\n## {node}\n\n{_further(node)}{table(head, rows)}\n" for node, rows in nodes.items())


def _further(node):
    method = next((method for method in load_methods().values() if method.config_key == node and method.reads), None)
    return f"Its method also reads: {', '.join(f'`{name}`' for name in method.reads)}.\n\n" if method else ""


def _row(name, key):
    return f"`{name}`", _code(key.default), _values(key), html.escape(key.help, quote=False)


def _code(value):
    return "`''`" if value == "" else f"`{value}`"


def _values(key: Key) -> str:
    kinds = [kind.__name__ for kind in key.kinds]
    words = []
    for kind in kinds:
        if kind == "list":
            item = key.item or type(key.default[0])
            words.append(f"list of {item.__name__}" + (f", each {key.range_text()}" if item in (int, float) else ""))
        elif kind in ("int", "float") and not key.choices or kind == "float":
            words.append(f"{kind} {key.range_text()}")
        elif key.choices:
            words.append(", ".join(f"`{choice}`" for choice in key.choices))
        else:
            words.append("path" if key.path else kind)
    return "; ".join([*words, *(["`None`"] if key.optional else [])])
