"""Files of mdistiller and its forks load unchanged with the same meaning."""

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.config.keys import GENERAL
from mdistiller.config.stated import flatten
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine.optim import DOTUpdater, build_updater
from mdistiller.errors import UserError
from mdistiller.models import MODELS, build_model
from tests.engine.support import REPOSITORY

CIFAR = """\
EXPERIMENT:
  NAME: ""
  TAG: "{tag},{teacher},{student}"
  PROJECT: "cifar100_baselines"
DISTILLER:
  TYPE: "{type}"
  TEACHER: "{teacher}"
  STUDENT: "{student}"
{more}SOLVER:
  BATCH_SIZE: 64
  EPOCHS: {epochs}
  LR: {lr}
  LR_DECAY_STAGES: [150, 180, 210]
  LR_DECAY_RATE: 0.1
  WEIGHT_DECAY: 0.0005
  MOMENTUM: 0.9
  TYPE: "SGD"
"""
IMAGENET = """\
EXPERIMENT:
  NAME: ""
  TAG: "imagenet"
  PROJECT: "imagenet_baselines"
DATASET:
  TYPE: "imagenet"
  NUM_WORKERS: 32
  TEST:
    BATCH_SIZE: 128
DISTILLER:
  TYPE: "{type}"
  TEACHER: "{teacher}"
  STUDENT: "{student}"
{more}SOLVER:
  BATCH_SIZE: 512
  EPOCHS: {epochs}
  LR: 0.2
  LR_DECAY_STAGES: [30, 60, 90]
  LR_DECAY_RATE: 0.1
  WEIGHT_DECAY: 0.0001
  MOMENTUM: 0.9
  TYPE: "SGD"
LOG:
  TENSORBOARD_FREQ: 50
  SAVE_CHECKPOINT_FREQ: 10
"""


def cifar(type_, rest="", more="", teacher="resnet32x4", student="resnet8x4", epochs=240, lr=0.05):
    names = {"type": type_, "tag": type_.lower(), "teacher": teacher, "student": student}
    return CIFAR.format(**names, more=more, epochs=epochs, lr=lr) + rest


def imagenet(type_, rest="", more="", teacher="ResNet34", student="ResNet18", epochs=100):
    return IMAGENET.format(type=type_, teacher=teacher, student=student, more=more, epochs=epochs) + rest


CRD = """CRD:
  MODE: "exact"
  FEAT:
    DIM: 128
    STUDENT_DIM: 512
    TEACHER_DIM: 512
  NCE: {K: 16384, MOMENTUM: 0.5, TEMPERATURE: 0.07}
"""
REVIEWKD = """REVIEWKD:
  CE_WEIGHT: 1
  REVIEWKD_WEIGHT: 5
  WARMUP_EPOCHS: 20
  SHAPES: [1,8,16,32]
  OUT_SHAPES: [1,8,16,32]
  IN_CHANNELS: [64,128,256,256]
  OUT_CHANNELS: [64,128,256,256]
  MAX_MID_CHANNEL: 512
  STU_PREACT: False
"""
FILES = {  # code base and file: text, registered method, settings
    "mdistiller vanilla": (cifar("NONE"), "NONE", {"SOLVER.WEIGHT_DECAY": 5e-4}),
    "mdistiller kd": (cifar("KD"), "KD", {"KD.TEMPERATURE": 4.0, "KD.LOSS.CE_WEIGHT": 0.1, "KD.LOSS.KD_WEIGHT": 0.9}),
    "mdistiller dkd": (cifar("DKD", "DKD:\n  CE_WEIGHT: 1.\n  ALPHA: 1.\n  BETA: 8.\n  T: 4.\n  WARMUP: 20\n"), "DKD",
                       {"DKD.BETA": 8.0, "DKD.T": 4.0, "DKD.WARMUP": 20}),
    "mdistiller fitnet": (cifar("FITNET", "FITNET:\n  HINT_LAYER: 2\n  INPUT_SIZE: (32, 32)\n"), "FITNET",
                          {"FITNET.INPUT_SIZE": [32, 32], "FITNET.LOSS.FEAT_WEIGHT": 100.0}),
    "mdistiller crd": (cifar("CRD", "  TRAINER: \"crd\"\n" + CRD), "CRD",
                       {"CRD.NCE.K": 16384, "SOLVER.TRAINER": "crd", "CRD.LOSS.FEAT_WEIGHT": 0.8}),
    "mdistiller reviewkd": (cifar("REVIEWKD", REVIEWKD), "REVIEWKD", {"REVIEWKD.REVIEWKD_WEIGHT": 5.0}),
    "mdistiller rkd": (cifar("RKD", "RKD:\n  PDIST: {EPSILON: 1e-12, SQUARED: False}\n"), "RKD",
                       {"RKD.PDIST.EPSILON": 1e-12, "RKD.ANGLE_WEIGHT": 50.0}),
    "mdistiller dot": (cifar("KD", "  TRAINER: \"dot\"\n  DOT:\n    DELTA: 0.075\n"), "KD",
                       {"SOLVER.TRAINER": "dot", "SOLVER.DOT.DELTA": 0.075}),
    "mdistiller imagenet ofd": (
        imagenet("OFD", "OFD:\n  LOSS:\n    FEAT_WEIGHT: 0.0001\n", teacher="ResNet50", student="MobileNetV1"), "OFD",
        {"OFD.LOSS.FEAT_WEIGHT": 1e-4, "LOG.SAVE_CHECKPOINT_FREQ": 10, "DATASET.TEST.BATCH_SIZE": 128}),
    "mdistiller imagenet kd": (
        imagenet("KD", "KD:\n  TEMPERATURE: 1\n  LOSS:\n    CE_WEIGHT: 0.5\n    KD_WEIGHT: 0.5\n"), "KD",
        {"KD.TEMPERATURE": 1.0, "KD.LOSS.CE_WEIGHT": 0.5}),
    "MLD": (cifar("KD_ours", "  TRAINER: \"ours\"\n", lr=0.025), "MLD", {"SOLVER.LR": 0.025, "KD.TEMPERATURE": 4.0}),
    "MLD imagenet": (
        imagenet("KD_ours", "KD:\n  TEMPERATURE: 1\n", teacher="ResNet50", student="MobileNetV2"), "MLD",
        {"KD.TEMPERATURE": 1.0}),
    "LS kd": (
        cifar("KD", "KD:\n  TEMPERATURE: 2\n  LOSS:\n    KD_WEIGHT: 9\n").replace(
            "  NAME: \"\"\n", "  NAME: \"\"\n  LOGIT_STAND: True\n"), "KD",
        {"DISTILLER.LS": True, "KD.TEMPERATURE": 2.0, "KD.LOSS.KD_WEIGHT": 9.0}),
    "LS mlkd": (cifar("MLKD", "  TRAINER: \"ours\"\n", teacher="vgg13", student="vgg8", epochs=480), "MLD",
                {"SOLVER.EPOCHS": 480}),
    "EA-KD kd": (cifar("KD", more="  EA: 1\n"), "EA-KD", {"EA.TEMPERATURE": 3.0, "EA.UPPER_BOUND": None}),
    "EA-KD dkd": (cifar("DKD", more="  EA: True\n"), "EA-DKD", {"DKD.BETA": 8.0}),
    "EA-KD reviewkd": (cifar("REVIEWKD", REVIEWKD, more="  EA: 1\n"), "EA-REVIEWKD", {"REVIEWKD.CE_WEIGHT": 1.0}),
    "EA-KD mld+ls": (
        cifar("KD_ours", "  TRAINER: \"ours\"\nKD:\n  TEMPERATURE: 2\n  LOSS:\n    KD_WEIGHT: 4.0\n\n\n\n",
              more="  LS: True\n  EA: 1\n", epochs=480, lr=0.025), "EA-MLD",
        {"DISTILLER.LS": True, "KD.LOSS.KD_WEIGHT": 4.0, "SOLVER.EPOCHS": 480}),
    "EA-KD imagenet kd": (
        imagenet("KD", "KD:\n  TEMPERATURE: 1\n  LOSS:\n    CE_WEIGHT: 1.0\n    KD_WEIGHT: 0.5\n",
                 more="  EA: 1\n  t: 2.0\n"), "EA-KD", {"EA.TEMPERATURE": 2.0, "KD.LOSS.CE_WEIGHT": 1.0}),
    "EA-KD imagenet dkd+ls": (
        imagenet("DKD", "DKD:\n  BETA: 0.5\n  T: 1.0\n  WARMUP: 1\nKD:\n  LOSS:\n    KD_WEIGHT: 2.0\n",
                 more="  EA: 1\n  t: 2\n  LS: 1\n", epochs=130), "EA-DKD",
        {"DISTILLER.LS": True, "DKD.BETA": 0.5, "KD.LOSS.KD_WEIGHT": 2.0, "EA.TEMPERATURE": 2.0}),
    "CRLD": (cifar("CRLD", '  TRAINER: "crld"'), "CRLD", {"CRLD.WV_WEIGHT": 2.0, "CRLD.TAU_W": 0.9}),
    "CRLD mlld": (cifar("MLLD", '  TRAINER: "mlld"'), "MLD", {"KD.TEMPERATURE": 4.0, "KD.LOSS.KD_WEIGHT": 0.9}),
    "SDD dkd": (cifar("SDD_DKD", teacher="resnet32x4_sdd", student="resnet8x4_sdd"), "SDD", {"SDD.LOSS": "dkd"}),
    "SDD nkd": (cifar("SDD_NKD", "M: [1, 2]\n", teacher="vgg13_sdd", student="vgg8_sdd"), "SDD",
                {"SDD.LOSS": "nkd", "SDD.M": [1, 2]}),
    "SDD imagenet": (imagenet("GL_DKD", "DKD:\n  BETA: 0.5\n  T: 1.0\n"), "SDD", {"SDD.LOSS": "dkd", "DKD.BETA": 0.5}),
    "SDD imagenet nkd": (imagenet("GLD_NKD", "DKD: {BETA: 2.0}\n"), "SDD", {"SDD.LOSS": "nkd", "DKD.BETA": 2.0}),
    "mdistiller-ddp": (cifar("KD").partition("  LR_DECAY_STAGES")[0] + "  SGD:\n    MOMENTUM: 0.9\n  SCHEDULE:\n"
                       "    MULTISTEP:\n      STAGES: [150, 180, 210]\n      RATE: 0.2\n", "KD",
                       {"SOLVER.SCHEDULE": "step", "SOLVER.LR_DECAY_RATE": 0.2}),
    "a dump of mdistiller-ddp": (
        cifar("KD").partition("  LR_DECAY_STAGES")[0] + "  SGD: {MOMENTUM: 0.9}\n  GRAD_CLIP: 1.0\n"
        "  ADAM: {BETAS: [0.9, 0.98], EPSILON: 1.0e-7}\n  SCHEDULE:\n    TYPE: MULTISTEP\n"
        "    MULTISTEP: {STAGES: [150, 180, 210], RATE: 0.1}\n    COSINE: {WARMUP: 5, RATE: 0.0001}\n", "KD",
        {"SOLVER.SCHEDULE": "step", "SOLVER.CLIP_NORM": 1.0, "SOLVER.BETAS": [0.9, 0.98], "SOLVER.EPS": 1e-7}),
    "SFAKD simkd": (cifar("SIMKD", "DATASET: {AUTO_AUG: False, CUT_OUT: False}\ndevice: 1\n"), "SIMKD",
                    {"SIMKD.LOSS.CE_WEIGHT": 0.0}),
    "MonotonicRankDistillation simkd": (
        cifar("SimKD", "SIMKD: {CE_WEIGHT: 0.5, FEAT_WEIGHT: 1.0, FACTOR: 4, INPUT_SIZE: [32, 32]}\n"), "SIMKD",
        {"SIMKD.LOSS.CE_WEIGHT": 0.5, "SIMKD.LOSS.FEAT_WEIGHT": 1.0, "SIMKD.FACTOR": 4}),
    "CAT-KD": (cifar("CAT_KD", "CAT_KD:\n  onlyCAT: False\n  IF_NORMALIZE: False\n  IF_BINARIZE: False\n"
                               "  LOSS: {CAT_loss_weight: 15., CAM_RESOLUTION: 2}\nif_test: True\ndevice: 0\n"),
               "CATKD", {"CAT_KD.LOSS.CAT_loss_weight": 15.0, "CAT_KD.IF_NORMALIZE": False}),
    "WKD": (cifar("WKD", "WKD:\n  INPUT_SIZE: (32, 32)\n  LOSS: {WKD_LOGIT_WEIGHT: 800., WKD_FEAT_WEIGHT: 0.}\n"
                         "  EPS: 0.00001\nDATASET: {NUM_CLASSES: 100}\n"), "WKD", {"WKD.LOSS.WKD_LOGIT_WEIGHT": 800.0}),
    "WKD imagenet": (imagenet("WKD", "WKD:\n  LOSS: {WKD_LOGIT_WEIGHT: 25., WKD_FEAT_WEIGHT: 0}\n"), "WKD",
                     {"WKD.LOSS.WKD_LOGIT_WEIGHT": 25.0, "WKD.LOSS.COSINE_DECAY_EPOCH": 0, "WKD.TEMPERATURE": 4.0}),
    "WKD none": (cifar("NONE", "WKD:\n  HINT_LAYER: -1\n  LOSS: {WKD_FEAT_WEIGHT: 0.0}\n"), "NONE",
                 {"WKD.LOSS.WKD_LOGIT_WEIGHT": 1.0}),
    "RLD dkd": (cifar("DKD", "DKD: {LOSS_TYPE: kl, BETA: 6.0}\n"), "DKD", {"DKD.BETA": 6.0}),
    "GDKD lskd": (cifar("LSKD", "  LR_SCHEDULER: \"step\"\nLSKD:\n  TEMPERATURE: 3\n  CE_WEIGHT: 1.0\n"), "KD",
                  {"DISTILLER.LS": True, "KD.TEMPERATURE": 3.0, "KD.LOSS.CE_WEIGHT": 1.0, "KD.LOSS.KD_WEIGHT": 9.0}),
    "GDKD dkdmod": (cifar("DKDMod", "DKDMOD:\n  BETA: 6.0\n"), "DKD", {"DKD.BETA": 6.0}),
    "GDKD dist": (cifar("DIST", "  LR_SCHEDULER: cosine\n  SGD_NESTEROV: False\nDIST:\n  T: 1\n  CE_WEIGHT: 0.5\n"),
                  "DIST", {"DIST.TEMPERATURE": 1.0, "DIST.LOSS.CE_WEIGHT": 0.5, "SOLVER.SCHEDULE": "cosine",
                           "SOLVER.MIN_LR": 1e-4}),
    "EA-KD without": (cifar("KD", more="  EA: 0\n  LS: False\n  t: 3.0\n"), "KD", {"DISTILLER.LS": False}),
}


@pytest.fixture
def loaded(tmp_path):
    """loaded(name, *overrides) -> the configuration of that file."""

    def load(name, *opts):
        path = tmp_path / "public.yaml"
        path.write_text(FILES[name][0])
        return load_cfg(path, opts)

    return load


@pytest.mark.parametrize("name", FILES)
def test_a_public_file_means_what_it_means_there(loaded, name):
    _, method, settings = FILES[name]
    cfg = loaded(name)
    assert cfg.DISTILLER.TYPE == method and cfg.DISTILLER.EA == method.startswith("EA-")
    said = flatten(cfg)
    assert {key: said[key] for key in settings} == settings
    zoo = MODELS["imagenet" if cfg.DATASET.TYPE == "imagenet" else "cifar"]
    assert cfg.DISTILLER.TEACHER in zoo and cfg.DISTILLER.STUDENT in zoo
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.TYPE, cfg.SOLVER.NESTEROV) == (0.9, "SGD", "WKD_FEAT" in FILES[name][0])
    assert cfg.SOLVER.LR_DECAY_STAGES == ([30, 60, 90] if cfg.DATASET.TYPE == "imagenet" else [150, 180, 210])


def test_every_method_that_public_files_name_is_among_them():
    named = {method.removeprefix("EA-") for _, method, _ in FILES.values()}
    assert named >= {"NONE", "KD", "DKD", "MLD", "REVIEWKD", "CRD", "OFD", "FITNET", "RKD"}
    for name in ("KD_ours", "MLKD", "kd_OURS", "EA-mlkd", "cat_kd", "SDD_KD"):
        assert DISTILLERS[name] is DISTILLERS[DISTILLERS.canonical(name)]


def test_the_released_factor_of_dkd_with_standardized_logits_is_that_of_the_release(loaded):
    """The released file has this factor under KD; here it is DKD.LS_WEIGHT."""
    networks = build_model("resnet8", 10), build_model("resnet8", 10)
    for opts, factor in (((), 2.0), (("EA.COMPAT", "release"), 2.0), (("DKD.LS_WEIGHT", 3.0), 3.0)):
        distiller = build_distiller(loaded("EA-KD imagenet dkd+ls", *opts), *networks)
        assert (distiller.alpha, distiller.beta) == (factor, 0.5 * factor)


def test_only_ea_kds_files_have_the_factor_of_dkd_under_kd(tmp_path):
    path = tmp_path / "public.yaml"
    text = "DISTILLER: {{TYPE: DKD{}}}\nKD: {{LOSS: {{KD_WEIGHT: 9}}}}\n{}"
    for method, more, factor in (
            (", LS: True", "", 9.0), (", LS: 1", "", 9.0), (", LS: False", "", 1.0),
            (", LS: True", "DKD: {LS_WEIGHT: 2}", 2.0), ("", "EXPERIMENT: {LOGIT_STAND: True}", 1.0)):
        path.write_text(text.format(method, more))
        assert load_cfg(path).DKD.LS_WEIGHT == factor


def test_keys_without_effect_are_warned_of_once_by_name(loaded, caplog):
    for _ in range(2):
        loaded("CAT-KD")
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "without effect here and left out: device, if_test"]


@pytest.mark.parametrize(("text", "message"), [
    ("CAT_KD: {IF_BINARIZE: True}", "CAT_KD.IF_BINARIZE: what it changes is not offered here; expected False"),
    ("WKD: {LOSS: {WKD_FEAT_WEIGHT: 0.02}}", "expected 0, found 0.02"),
    ("DISTILLER: {TYPE: GDKD}\nGDKD: {TOPK: 5}", "TYPE: GDKD: it is not among the methods here; the nearest is DKD: "
                                                 "it splits the classes at the teacher's most likely ones"),
    ("DISTILLER: {TYPE: EA-DKD_aug}", "the nearest is DKD: it also distils a strongly augmented view"),
    ("DATASET: {TYPE: tiny-imagenet}", "DATASET.TYPE: tiny-imagenet: GDKD's files mean Tiny-ImageNet at 224 pixels"),
    ("DATASET: {CUT_OUT: True}", "DATASET.CUT_OUT: what it changes is not offered here; expected False, found True"),
    ("SIMKD: {FEAT_WEIGHT: 100.0}", "SIMKD.FEAT_WEIGHT: what it changes is not offered here; expected 1, found 100.0"),
    ("SOLVER: {SCHEDULE: {TYPE: COSINE, COSINE: {WARMUP: 5}}}",
     "SOLVER.SCHEDULE.TYPE: COSINE: it is SOLVER.SCHEDULE cosine here, with SOLVER.WARMUP_EPOCHS"),
    ("CONFIG: {DEFAULTS: lsd}", "CONFIG.DEFAULTS: expected one of mdistiller, ls, wkd; found 'lsd'"),
    ("CONFIG: {DEFAULT: ls}", "nearest: CONFIG.DEFAULTS"),
])
def test_a_setting_that_would_change_the_training_silently_is_refused(tmp_path, text, message):
    (tmp_path / "public.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_cfg(tmp_path / "public.yaml")
    assert f"{tmp_path}/public.yaml: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("keys", ["DTKD: {ALPHA: 3.0}", "SOLVER: {ALPHA: 31.0}", "EXPERIMENT: {DDP: True}"])
def test_an_unknown_method_is_named_before_the_keys_that_came_with_it(tmp_path, keys):
    (tmp_path / "public.yaml").write_text(f"{keys}\nDISTILLER: {{TYPE: DTKD}}\n")
    with pytest.raises(UserError, match=r"public\.yaml: DISTILLER\.TYPE: unknown method 'DTKD'; nearest: DKD"):
        load_cfg(tmp_path / "public.yaml")


def test_files_of_logit_standardization_get_its_defaults_when_asked(tmp_path, caplog):
    path = tmp_path / "ls.yaml"
    path.write_text(cifar("MLKD").replace("  NAME: \"\"\n", "  NAME: \"\"\n  LOGIT_STAND: True\n"))
    cfg = load_cfg(path)
    assert (cfg.KD.LOSS.KD_WEIGHT, cfg.KD.TEMPERATURE) == (0.9, 4.0) and "CONFIG.DEFAULTS ls" in caplog.text
    cfg = load_cfg(path, ["CONFIG.DEFAULTS", "ls", "KD.TEMPERATURE", "3"])
    assert (cfg.KD.LOSS.CE_WEIGHT, cfg.KD.LOSS.KD_WEIGHT, cfg.KD.TEMPERATURE) == (0.1, 9.0, 3.0)
    assert load_cfg(None, ["CONFIG.DEFAULTS=ls"]).KD.TEMPERATURE == 2.0


def test_mdistillers_files_of_tiny_imagenet_mean_another_augmentation_and_are_told(tmp_path, caplog):
    path = tmp_path / "r18_mv2.yaml"
    path.write_text("DATASET: {TYPE: tiny_imagenet}\nDISTILLER: {TYPE: KD}\n")
    load_cfg(path, ["DATASET.AUGMENTATION", "rotate_flip"])
    load_cfg("configs/tiny_imagenet/kd/res32x4_res8x4.yaml")
    load_cfg(None, ["DATASET.TYPE", "tiny_imagenet"])
    assert not caplog.records
    assert load_cfg(path).DATASET.AUGMENTATION == "crop_flip"
    assert "DATASET.AUGMENTATION is left out and means crop_flip; mdistiller's own" in caplog.text


@pytest.mark.parametrize(("precision", "here"), [("True", "fp16"), ("False", "none"), ("0", "none")])
def test_mixed_precision_of_mdistiller_ddp_is_that_of_float16(tmp_path, precision, here):
    path = tmp_path / "public.yaml"
    path.write_text(f"EXPERIMENT: {{DDP: True, AMP: {precision}}}\n")
    assert load_cfg(path).SOLVER.AMP == load_cfg(None, ["EXPERIMENT.AMP", precision]).SOLVER.AMP == here
    path.write_text("EXPERIMENT: {AMP: bf16}\n")
    with pytest.raises(UserError, match="unknown key EXPERIMENT.AMP"):
        load_cfg(path)


def test_what_is_said_wins_over_the_defaults_of_wkds_authors(tmp_path):
    path = tmp_path / "public.yaml"
    path.write_text("DISTILLER: {TYPE: WKD}\nSOLVER: {NESTEROV: False}\nWKD: {TEMPERATURE: 8}\n")
    stated = load_cfg(path, ["WKD.LOSS.WKD_FEAT_WEIGHT", "0"])
    assert (stated.SOLVER.NESTEROV, stated.WKD.TEMPERATURE, stated.WKD.LOSS.COSINE_DECAY_EPOCH) == (False, 8.0, 0)
    path.write_text("CONFIG: {DEFAULTS: mdistiller}\nDISTILLER: {TYPE: WKD}\nWKD: {LOSS: {WKD_FEAT_WEIGHT: 0}}\n")
    plain = load_cfg(path)
    assert (plain.SOLVER.NESTEROV, plain.WKD.LOSS.COSINE_DECAY_EPOCH) == (False, 150)


def test_a_method_whose_left_out_keys_mean_something_else_elsewhere_is_told(tmp_path, caplog):
    path = tmp_path / "public.yaml"

    def told(text):
        caplog.clear()
        path.write_text(text)
        load_cfg(path)
        return [record.message.partition(": ")[2].partition(" is left out and ")[0] for record in caplog.records]

    assert told(cifar("MLKD", "  TRAINER: aug\nKD: {TEMPERATURE: 4}\n")) == []
    assert told(cifar("NKD", "NKD: {T: 3.0}\n")) == told(cifar("DKD")) == told(cifar("MLD")) == []
    assert told(cifar("WKD")) == ["WKD"] and told(cifar("WKD", "WKD: {LOSS: {WKD_FEAT_WEIGHT: 0}}\n")) == []
    assert told(cifar("NONE")) == [] and told(cifar("NONE").replace('  STUDENT: "resnet8x4"\n', "")) == [
        "DISTILLER.STUDENT"]
    assert told("DISTILLER: {TYPE: NKD}\n") == told("DISTILLER: {TYPE: MLKD}\n") == []  # not from another code base
    ours = REPOSITORY / "configs/digits/nkd/res20_res8.yaml"
    assert told(f"_BASE_: {ours}\nEXPERIMENT: {{TAG: mine}}\n") == []
    assert told(f"_BASE_: {REPOSITORY}/configs/digits/kd/res20_res8.yaml\n{cifar('KD')}") == []
    assert told(cifar("EA-MLKD")) == ["KD", "SOLVER.TRAINER"] and "CONFIG.DEFAULTS ls gives" in caplog.text
    assert told(cifar("NKD")) == ["NKD"] and "two other code bases mean T 4" in caplog.text


def test_a_file_of_kd_that_leaves_it_out_is_told_unless_its_code_base_is_known(tmp_path, caplog):
    """Files of logit standardization's code say nothing of KD and mean weight 9 and temperature 2."""
    path = tmp_path / "public.yaml"
    path.write_text(cifar("KD"))
    for opts in ("CONFIG.DEFAULTS=mdistiller", "CONFIG.DEFAULTS=ls", "DISTILLER.EA=1", "KD.TEMPERATURE=4"):
        load_cfg(path, [opts])
    assert not caplog.records
    assert load_cfg(path).KD.TEMPERATURE == 4.0
    (record,) = caplog.records
    assert f"{path}: KD is left out and means mdistiller's defaults" in record.message
    assert "CONFIG.DEFAULTS ls gives" in record.message


def test_a_public_file_that_leaves_out_what_all_files_of_mdistiller_state_is_told(tmp_path, caplog):
    """One fork has a weight decay of 0.0005 by default, others 10 epochs or batches of 32."""
    path = tmp_path / "public.yaml"
    text = cifar("DKD").replace("  WEIGHT_DECAY: 0.0005\n", "").replace("  EPOCHS: 240\n", "")
    path.write_text(text)
    load_cfg(path, ["CONFIG.DEFAULTS", "mdistiller"])
    load_cfg(path, ["SOLVER.WEIGHT_DECAY", "5e-4", "SOLVER.EPOCHS", "240"])
    load_cfg(path, ["SOLVER.WEIGHT_DECAY", "5e-4", "SOLVER.MAX_ITER", "1000"])
    path.write_text(f"_BASE_: {REPOSITORY}/configs/cifar100/dkd/vgg13_vgg8.yaml\n{text}")
    load_cfg(path)
    assert not caplog.records
    path.write_text(text)
    assert load_cfg(path).SOLVER.WEIGHT_DECAY == 1e-4
    assert [record.message for record in caplog.records] == [
        f"{path}: SOLVER.EPOCHS, SOLVER.WEIGHT_DECAY: left out, so mdistiller's defaults hold; some of its forks have "
        "others"]


@pytest.mark.parametrize("trainer", GENERAL["SOLVER.TRAINER"].choices)
@pytest.mark.parametrize("method", ["KD", "MLD"])
def test_trainers_of_public_files_change_nothing_but_the_optimiser_of_dot(method, trainer):
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "SOLVER.TRAINER", trainer])
    networks = build_model("resnet8", 10), build_model("resnet8", 10)
    distiller = build_distiller(cfg, *networks)
    assert len(distiller.views) == (2 if method == "MLD" else 1)
    updater = build_updater(cfg, distiller, torch.device("cpu"))
    assert isinstance(updater, DOTUpdater) == (trainer in ("dot", "crd_dot"))
