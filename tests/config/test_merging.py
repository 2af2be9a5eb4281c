"""Trees of `get_cfg` set in YACS's own ways, attribute by attribute or merged, mean what `load_cfg` reads."""

import pickle

import pytest
from torch import nn
from yacs.config import CfgNode

from mdistiller.config import dump_cfg, get_cfg, load_cfg
from mdistiller.config.keys import OTHER_SPELLINGS
from mdistiller.distillers import build_distiller
from mdistiller.errors import UserError
from tests.config.test_loading import MDISTILLER


def settings_of(cfg):
    distiller = build_distiller(cfg, nn.Linear(2, 2), nn.Linear(2, 2))
    return distiller.weighting, distiller.logit_standardization


def test_merging_mdistillers_defaults_changes_nothing_and_a_file_brings_its_bases(tmp_path):
    cfg = get_cfg()
    before, kd = cfg.clone(), cfg.KD
    cfg.merge_from_file(MDISTILLER)
    assert cfg == get_cfg() == before and cfg.KD is kd
    (tmp_path / "base.yaml").write_text("KD: {TEMPERATURE: 2}\nDISTILLER: {TYPE: ea-kd_OURS}\n")
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: base.yaml\nSOLVER: {LR: 1e-2}\n")
    cfg.merge_from_file(child)
    cfg.merge_from_list(["SOLVER.EPOCHS", "3", "RKD.DISTANCE_WEIGHT", 5])
    cfg.merge_from_other_cfg(CfgNode({"DKD": {"ALPHA": 2}}))
    assert (kd.TEMPERATURE, cfg.SOLVER.LR, cfg.RKD.DISTANCE_WEIGHT, cfg.DKD.ALPHA) == (2.0, 0.01, 5.0, 2.0)
    cfg.DISTILLER.update(TYPE="EA-MLD", EA=True)  # which load_cfg has resolved
    assert cfg == load_cfg(child, ["SOLVER.EPOCHS", 3, "RKD.DISTANCE_WEIGHT", 5, "DKD.ALPHA", 2])


def test_a_switch_that_is_said_to_be_off_is_off_and_one_that_nobody_set_says_nothing():
    given, cfg = get_cfg(), get_cfg()
    given.DISTILLER.TYPE = "EA-KD"  # its EA is the default
    cfg.merge_from_other_cfg(given)
    assert (cfg.DISTILLER.TYPE, cfg.DISTILLER.EA) == ("EA-KD", True)
    cfg.merge_from_list(["DISTILLER.EA", "False"])
    assert (cfg.DISTILLER.TYPE, cfg.DISTILLER.EA) == ("KD", False)


@pytest.mark.parametrize("opts, expected", [
    (["KD.TEMPERATUR", 2], "command line: unknown key KD.TEMPERATUR; nearest: KD.TEMPERATURE"),
    (["KD.TEMPERATURE", "hot"], "command line: KD.TEMPERATURE: expected float, found 'hot'"),
    (["SOLVER.EPOCHS", 3, "DISTILLER.TYPE", "KDD"], "command line: DISTILLER.TYPE: unknown method 'KDD'"),
    (["FCFD.EXTRA_TYPE", "nomix"], "command line: FCFD.EXTRA_PATHS: expected 0 with EXTRA_TYPE nomix; found 2"),
])
def test_a_merge_with_a_mistake_is_refused_in_one_line_and_changes_nothing(opts, expected):
    cfg = get_cfg()
    with pytest.raises(UserError) as error:
        cfg.merge_from_list(opts)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value) and cfg == get_cfg()


def test_a_merged_tree_is_copied_pickled_frozen_and_dumped_like_any_other(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["DISTILLER.t", 2])
    cfg.freeze()
    for copied in (cfg.clone(), pickle.loads(pickle.dumps(cfg))):
        assert copied == cfg and type(copied) is type(cfg) and copied.is_frozen()
    for text in (cfg.dump(), dump_cfg(cfg)):
        (tmp_path / "dumped.yaml").write_text(text)
        assert load_cfg(tmp_path / "dumped.yaml") == cfg
    copied.defrost()
    assert cfg.KD.is_frozen() and not copied.KD.is_frozen()


@pytest.mark.parametrize("name, value", [("DISTILLER.t", 2), ("EXPERIMENT.LOGIT_STAND", True)])
def test_another_spelling_means_the_same_as_an_attribute_in_a_merge_and_in_a_file(name, value):
    assert set(OTHER_SPELLINGS) == {"DISTILLER.t", "EXPERIMENT.LOGIT_STAND"}
    expected = settings_of(load_cfg(None, ["DISTILLER.TYPE", "EA-KD", name, value]))
    assert expected != settings_of(load_cfg(None, ["DISTILLER.TYPE", "EA-KD"]))
    attribute, merged = get_cfg(), get_cfg()
    node, key = name.split(".")
    attribute.DISTILLER.TYPE, attribute[node][key] = "EA-KD", value
    attribute.freeze()
    before = attribute.clone()
    merged.merge_from_list(["DISTILLER.TYPE", "EA-KD", name, value])
    assert settings_of(attribute) == settings_of(merged) == expected and attribute == before


def test_a_key_set_back_to_its_default_after_its_other_spelling_has_it():
    cfg = get_cfg()
    cfg.merge_from_list(["EXPERIMENT.LOGIT_STAND", True, "DISTILLER.t", 2])
    cfg.merge_from_list(["EA.TEMPERATURE", 3, "EXPERIMENT.LOGIT_STAND", False])
    for one in (cfg, load_cfg(None, ["DISTILLER.t", 2, "EA.TEMPERATURE", 3])):
        weighting, standardized = settings_of(one)
        assert weighting.temperature == 3.0 and not standardized
    cfg.merge_from_list(["DISTILLER.TYPE", "EA-KD"])
    cfg.merge_from_list(["DISTILLER.TYPE", "KD"])
    assert not build_distiller(cfg, nn.Linear(2, 2), nn.Linear(2, 2)).weighted
    cfg.DISTILLER.t = 5.0
    cfg.merge_from_list(["SOLVER.EPOCHS", 3])
    assert settings_of(cfg)[0].temperature == 5.0
    cfg.EA.TEMPERATURE = 4.0
    assert settings_of(cfg)[0].temperature == 4.0


@pytest.mark.parametrize(("name", "value", "problem"), [
    ("TEMPERATURE", -1, "expected a number greater than 0"),
    ("TEMPERATURE", "four", "expected float, found 'four'"),
    ("TEMPERATURE", None, "expected float, found None"),
    ("TEMPERATURE", "2", ""),
])
def test_a_value_that_is_set_as_an_attribute_is_checked_when_the_distiller_is_built(name, value, problem):
    cfg = get_cfg()
    cfg.DISTILLER.TYPE, cfg.KD[name] = "KD", value
    if problem:
        with pytest.raises(UserError, match=f"^KD.{name}: {problem}"):
            settings_of(cfg)
    else:
        distiller = build_distiller(cfg, nn.Linear(2, 2), nn.Linear(2, 2))
        assert distiller.temperature == 2.0 and cfg.KD[name] == value
