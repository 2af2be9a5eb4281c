"""Where configs and teachers are: those of the user, and those of the checkout or of the installed package."""

import difflib
import json
import os
import re
from collections import Counter
from pathlib import Path

from mdistiller.errors import UserError

_ABOVE = Path(__file__).resolve().parents[1]
CHECKOUT = _ABOVE if (_ABOVE / "pyproject.toml").is_file() else None  # None: installed from a wheel
SHIPPED = CHECKOUT or Path(__file__).resolve().parent / "shipped"  # holds configs/ and checkpoints/
CONFIGS, CHECKPOINTS = SHIPPED / "configs", SHIPPED / "checkpoints"
HOME = CHECKOUT or Path()  # where commands put what belongs to the project: the checkout, else the working folder

# Usual file names of a teacher, below checkpoints/ or download_ckpts/ of the working folder or of the shipped files.
TEACHER_FILES = {
    "cifar100": "cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth",
    "tiny_imagenet": "tiny_imagenet_teachers/{name}_vanilla/ti_res18",
}
SHORT = (  # how other code bases write the parts of a config's name, and how they are compared
    (r"[-+]", "_"), (r"res(net)?(?=\d)", "r"), (r"wrn_(?=\d)", "wrn"), (r"mobilenet_?v(?=\d)", "mv"),
    (r"shuffle(net)?_?v(?=\d)", "shuv"), (r"\b(mlkd|mlld|(kd_)?ours)\b", "mld"), (r"\bea/", "ea_"),
)
RANDOM_TEACHER = "random"  # value of DISTILLER.TEACHER_CHECKPOINT to test a pipeline without a trained teacher
NEAR = 0.6  # least similarity of a name that is offered


def find_config(path: str | Path) -> Path:
    """The config file at `path`, else the one of this name that comes along, with or without "configs/" before it.

    Raises UserError with the nearest names if there is neither.
    """
    for place in (Path(), SHIPPED, CONFIGS):
        if os.path.isfile(place / path):  # False for a name that no file can have, too
            return place / path
    if os.path.lexists(path):  # a folder, a pipe, a broken link: whoever reads it says so
        return Path(path)
    near = [str(one) for one in nearest_configs(Path(path))]
    raise UserError(f"{path}: no such config file; "
                    + (f"nearest: {', '.join(near)}" if near else "tools/configs.py lists those that come along"))


def nearest_configs(path: Path) -> list[Path]:
    """Up to three configs that a path may mean.

    They are those with the same parts in another order or spelling, such as the public
    "configs/imagenet/r34_r18/dkd.yaml". If there are none: files of a similar name beside it; else configs with all of
    its parts and more; else configs with a similar name.
    """
    names = sorted(one.relative_to(CONFIGS) for one in CONFIGS.rglob("*.yaml") if one.parent != CONFIGS / "methods")
    known, wanted = {name: _parts(name) for name in names}, _parts(path)
    found = [name for name in names if sorted(known[name]) == sorted(wanted)]
    beside = {one.stem: one for one in sorted(path.parent.glob("*.y*ml"))} if os.path.isdir(path.parent) else {}
    near = [] if found else [beside[stem] for stem in difflib.get_close_matches(path.stem, beside, cutoff=NEAR)]
    if not found and not near:
        found = [name for name in names if set(wanted) <= set(known[name])]
        often = Counter(name.name for name in names)  # a pair of networks that many methods have comes first
        found.sort(key=lambda name: (len(name.parts), -often[name.name]))
    if not found and not near:
        texts = {"/".join(parts): name for name, parts in known.items()}
        found = [texts[text] for text in difflib.get_close_matches("/".join(wanted), texts, cutoff=NEAR)]
    return [*near, *(Path("configs") / name for name in found)][:3]


def _parts(path):
    parts = path.parts[path.parts.index("configs") + 1:] if "configs" in path.parts else path.parts
    text = re.sub(r"\.ya?ml$", "", "/".join(parts).lower())
    for pattern, short in SHORT:
        text = re.sub(pattern, short, text)
    return text.split("/")


def find_teacher(dataset: str, name: str, configured: str | None) -> Path:
    """Path of the teacher's checkpoint: the configured file, else the first usual path that exists.

    Raises UserError when there is no such file.
    """
    if configured:
        for root in (Path(), SHIPPED):
            if os.path.isfile(root / configured):
                return root / configured
        raise UserError(f"DISTILLER.TEACHER_CHECKPOINT: no such file: {configured}")
    places = [f"{dataset}/{name.replace('/', '-').replace(':', '-')}.pth"]
    if dataset in TEACHER_FILES:
        places.append(TEACHER_FILES[dataset].format(name=name))
    for root in dict.fromkeys((Path().resolve(), SHIPPED)):
        for folder in ("checkpoints", "download_ckpts"):
            for place in places:
                if (root / folder / place).is_file():
                    return root / folder / place
    recipes = f"configs/{dataset}/vanilla/"
    how = f"train one ({recipes if (SHIPPED / recipes).is_dir() else 'DISTILLER.TYPE NONE'})"
    if dataset in TEACHER_FILES and CHECKOUT:  # a wheel has no scripts
        how += f" or the paper's (bash scripts/train_teachers.sh {dataset})"
    if name in _public_teachers(dataset):
        how = f"fetch the public ones (python tools/fetch_teachers.py {dataset}), {how}"
    raise UserError(
        f"DISTILLER.TEACHER_CHECKPOINT: no checkpoint of {name} for {dataset} in checkpoints/ or download_ckpts/ "
        f"({' or '.join(places)}); {how} or set its path"
    )


def _public_teachers(dataset):
    """The networks of which tools/fetch_teachers.py has a file; none of wrn_28_4."""
    return json.loads((CHECKPOINTS / "index.json").read_text()).get(dataset, {}).get("teachers", {})
