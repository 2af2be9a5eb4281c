"""The files under configs/ agree with the paper's runs and with the rules in configs/README.md."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from mdistiller.config import get_cfg, load_cfg
from mdistiller.config.files import chain, read_yaml
from mdistiller.config.stated import flatten
from mdistiller.distillers import DISTILLERS
from mdistiller.models import MODELS
from mdistiller.models.detection import NAMES as DETECTORS
from mdistiller.runs.paper import load_runs

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
EXPERIMENTS = [file for file in FILES if file.count("/") == 2]
FAMILIES = {"tiny_imagenet": "tiny_imagenet", "imagenet": "imagenet"}  # else cifar
DETECTION = ("coco", "coco_tiny", "digits_detection")
RUNS = load_runs()
PROVENANCE = read_yaml(Path(__file__).parent / "provenance.yaml")
TRANSFORMERS = {
    "vit_b": "timm:vit_base_patch16_224",
    "deit_b": "timm:deit_base_patch16_224",
    "swin_b": "timm:swin_base_patch4_window7_224",
}
SCHEDULE = "EPOCHS LR LR_DECAY_STAGES LR_DECAY_RATE BATCH_SIZE WEIGHT_DECAY MOMENTUM NESTEROV".split()
resolved = cache(load_cfg)


def run_id(run):
    return "-".join([run.table, run.config.removeprefix("configs/").removesuffix(".yaml"), *run.overrides])


@pytest.mark.parametrize("run", RUNS, ids=run_id)
def test_a_config_has_the_settings_of_its_run(run):
    cfg = resolved(REPOSITORY / run.config, run.overrides)
    said = flatten(cfg)
    assert {name: said[name] for name in run.settings} == dict(run.settings)
    assert len(DISTILLERS[cfg.DISTILLER.TYPE].views) == run.views
    assert run.settings.keys() >= {f"SOLVER.{name}" for name in SCHEDULE}


@pytest.mark.parametrize(("config", "settings"), [
    ("cifar100/ea_mld_ls/res32x4_shuv2", {"SOLVER.EPOCHS": 960, "SOLVER.LR": 0.01, "KD.LOSS.KD_WEIGHT": 4.0}),
    ("cifar100/mld/vgg13_vgg8", {"SOLVER.EPOCHS": 240, "SOLVER.LR": 0.025, "DISTILLER.LS": False}),
    ("cifar100/ea_fcfd/res50_mv2", {"FCFD.TEMPERATURE": 8.0, "SOLVER.NESTEROV": True, "SOLVER.LR": 0.01}),
    ("imagenet/ea_dkd_ls/r34_r18", {"SOLVER.EPOCHS": 130, "DKD.LS_WEIGHT": 2.0, "EA.TEMPERATURE": 2.0}),
    ("cifar100/dkd/res56_res20", {"DKD.BETA": 2.0, "SOLVER.LR": 0.05, "DISTILLER.STUDENT": "resnet20"}),
    ("cifar100/ea_dkd/wrn40_2_shuv1", {"DKD.BETA": 8.0, "SOLVER.LR": 0.01, "DISTILLER.STUDENT": "ShuffleV1"}),
    ("cifar100/dot/res32x4_shuv2", {"SOLVER.TRAINER": "dot", "SOLVER.DOT.DELTA": 0.075, "SOLVER.LR": 0.01}),
    ("imagenet/dot/r50_mv1", {"SOLVER.DOT.DELTA": 0.09, "KD.TEMPERATURE": 1.0, "KD.LOSS.CE_WEIGHT": 0.5}),
    ("tiny_imagenet/dot/r18_shuv2", {"SOLVER.EPOCHS": 200, "SOLVER.BATCH_SIZE": 256, "SOLVER.LR": 0.2,
                                     "SOLVER.LR_DECAY_STAGES": [60, 120, 160], "DATASET.AUGMENTATION": "rotate_flip"}),
    ("tiny_imagenet/ea_kd/swin_b_res8x4", {"EA.TEMPERATURE": 2.0, "DISTILLER.TEACHER_INPUT_SIZE": 224}),
])
def test_a_few_published_settings_copied_by_hand(config, settings):
    said = flatten(resolved(CONFIGS / f"{config}.yaml"))
    assert {name: said[name] for name in settings} == settings


@pytest.mark.parametrize("file", FILES)
def test_a_file_loads_as_any_yaml_reader_reads_it(file):
    cfg, folder = resolved(CONFIGS / file), file.split("/")[0]
    assert cfg.DATASET.TYPE == (folder if folder != "methods" else get_cfg().DATASET.TYPE)
    text = (CONFIGS / file).read_text()
    assert yaml.safe_load(text) == read_yaml(CONFIGS / file)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_a_file_is_where_its_method_is_looked_for_and_names_networks_that_there_are(file):
    cfg = resolved(CONFIGS / file)
    dataset, folder, name = file.removesuffix(".yaml").split("/")
    if folder == "vanilla":
        assert cfg.DISTILLER.TYPE == "NONE"
        # a detector's student alone has the pair's name: its weights and settings are those of the pair
        assert cfg.DISTILLER.STUDENT in (TRANSFORMERS.get(name, name), name.rpartition("_")[2])
    elif folder == "dot":
        assert (cfg.DISTILLER.TYPE, cfg.SOLVER.TRAINER) == ("KD", "dot")
    else:
        assert folder == cfg.DISTILLER.TYPE.lower().replace("-", "_") + ("_ls" if cfg.DISTILLER.LS else "")
    if cfg.TASK.TYPE == "language":
        return  # names of tests/language
    zoo = DETECTORS if dataset in DETECTION else MODELS[FAMILIES.get(dataset, "cifar")]
    names = {cfg.DISTILLER.STUDENT} | ({cfg.DISTILLER.TEACHER} if cfg.DISTILLER.TYPE != "NONE" else set())
    assert {name for name in names if not name.startswith("timm:")} <= set(zoo)


@pytest.mark.parametrize("file", [file for file in EXPERIMENTS if "/ea_" in file])
def test_an_ea_file_inherits_from_its_baseline(file):
    dataset, folder, name = file.split("/")
    base, method = read_yaml(CONFIGS / file)["_BASE_"]
    assert base == f"../{folder.removeprefix('ea_')}/{name}"
    assert method == f"../../methods/{folder.removesuffix('_ls')}.yaml"
    variant, baseline = flatten(resolved(CONFIGS / file)), flatten(resolved(CONFIGS / dataset / folder / base))
    changed = {key for key in baseline if baseline[key] != variant[key]}
    assert changed >= {"DISTILLER.TYPE", "DISTILLER.EA"}
    assert changed <= {"DISTILLER.TYPE", "DISTILLER.EA", "SOLVER.EPOCHS", "SOLVER.LR", "KD.LOSS.KD_WEIGHT",
                       "KD.LOSS.CE_WEIGHT", "DKD.T", "DKD.LS_WEIGHT"}, "only what the paper or its release changed"


def provenance(run):
    return PROVENANCE[f"{run.table}: {run.method}: {' '.join([run.config, *run.overrides])}"]


def test_every_run_of_the_paper_says_where_its_settings_are_from():
    assert all(provenance(run)["source"] for run in RUNS) and len(PROVENANCE) == len(RUNS)


@pytest.mark.parametrize("run", [run for run in RUNS if provenance(run).get("uncertain") and not run.overrides],
                         ids=run_id)
def test_an_inferred_setting_says_so_in_a_comment(run):
    texts = [Path(path).read_text() for path, _ in chain(REPOSITORY / run.config)]
    assert "inferred" in "".join(texts).lower()


@pytest.mark.parametrize("method", sorted(set(DISTILLERS) - {"EA-NONE"}))
def test_every_method_can_be_tried_on_digits(method):
    cfg = resolved(CONFIGS / "digits" / method.lower().replace("-", "_") / "res20_res8.yaml")
    assert (cfg.DISTILLER.TYPE, cfg.SOLVER.EPOCHS) == (method, 30)


@cache
def settings(path):
    """(inherited, own) settings of a file, by dotted key."""

    def leaves(tree, prefix=""):
        return {place: leaf for key, value in tree.items() for place, leaf in (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}).items()}

    own = leaves(read_yaml(path))
    bases = own.pop("_BASE_", [])
    inherited = {}
    for base in [bases] if isinstance(bases, str) else bases:
        below, stated = settings((path.parent / base).resolve())
        inherited |= below | stated
    return inherited, own


def test_settings_are_inherited_and_not_repeated():
    found = {file: settings(CONFIGS / file) for file in FILES}
    assert not [(file, key) for file, (inherited, own) in found.items()
                for key, value in own.items() if key in inherited and inherited[key] == value]
