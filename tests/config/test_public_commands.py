"""Commands of the READMEs of mdistiller and its forks mean here what they mean there; they are parsed only."""

import sys

import pytest

from mdistiller.config import load_cfg
from mdistiller.config.public import LS_WEIGHTED
from mdistiller.config.stated import flatten
from tools import eval as eval_tool
from tools import train as train_tool

FILE = "configs/cifar100/{}/res32x4_res8x4.yaml"
STANDARDIZED = "--logit-stand --base-temp 2 --kd-weight 9"
TRAIN = {  # words of tools/train.py: what the configuration holds
    "--cfg {kd}": {"DISTILLER.TYPE": "KD", "DISTILLER.LS": False},
    f"--cfg {{kd}} {STANDARDIZED}": {"DISTILLER.LS": True, "KD.TEMPERATURE": 2.0, "KD.LOSS.KD_WEIGHT": 9.0,
                                     "KD.LOSS.CE_WEIGHT": 0.1},
    "--cfg {kd} --logit-stand": {"DISTILLER.LS": True, "KD.TEMPERATURE": 2.0, "KD.LOSS.KD_WEIGHT": 9.0},
    "--cfg {kd} --logit-stand KD.TEMPERATURE 5": {"KD.TEMPERATURE": 5.0, "KD.LOSS.KD_WEIGHT": 9.0},
    f"--cfg {{mld}} {STANDARDIZED}": {"DISTILLER.LS": True, "KD.TEMPERATURE": 2.0, "KD.LOSS.KD_WEIGHT": 9.0},
    f"--cfg {{dkd}} {STANDARDIZED}": {"DISTILLER.LS": True, "DKD.T": 2.0, "DKD.LS_WEIGHT": 9.0, "DKD.BETA": 8.0,
                                      "KD.LOSS.KD_WEIGHT": 0.9},
    "--cfg {kd} DISTILLER.TYPE EA-DKD --logit-stand --kd-weight 12": {
        "DISTILLER.TYPE": "EA-DKD", "DKD.LS_WEIGHT": 12.0, "DKD.T": 2.0},
    "--cfg {kd} DISTILLER.TYPE SDD_DKD DKD.BETA 6 --logit-stand": {
        "SDD.LOSS": "dkd", "DKD.T": 2.0, "DKD.ALPHA": 9.0, "DKD.BETA": 54.0, "DISTILLER.LS": True},
    "--cfg {kd} DISTILLER.TYPE SDD_KD --logit-stand --kd-weight 6": {"KD.TEMPERATURE": 2.0, "KD.LOSS.KD_WEIGHT": 6.0},
    "--cfg {rld} --logit-stand --base-temp 5 --kd-weight 6": {
        "RLD.T": 5.0, "RLD.ALPHA_T": 5.0, "RLD.ALPHA": 6.0, "RLD.BETA": 48.0, "DISTILLER.LS": True},
    "--cfg {sdd} --M [1,2] --logit-stand --gpu 0": {
        "SDD.M": [1, 2], "DEVICE": "cuda:0", "DISTILLER.LS": True, "KD.TEMPERATURE": 2.0},
    "--cfg {kd} --resume SOLVER.BATCH_SIZE 128 SOLVER.LR 0.1": {"SOLVER.BATCH_SIZE": 128, "SOLVER.LR": 0.1},
}
EVAL = {  # words of tools/eval.py: model, checkpoint, dataset, overrides
    "-m resnet32x4": ("resnet32x4", None, None, []),
    "-m resnet32x4 -c pretrain": ("resnet32x4", None, None, []),
    "-m resnet8x4 -c x.pth -d cifar100": ("resnet8x4", "x.pth", "cifar100", []),
    "-m resnet8x4 --ckpt x.pth -bs 64": ("resnet8x4", "x.pth", None, ["DATASET.TEST.BATCH_SIZE", "64"]),
    "-m ResNet34 -d imagenet -bs 128": ("ResNet34", None, "imagenet", ["DATASET.TEST.BATCH_SIZE", "128"]),
}


@pytest.mark.parametrize("line", TRAIN)
def test_a_public_command_trains_what_it_trains_there(line, monkeypatch):
    words = line.format(**{name: FILE.format(name) for name in ("kd", "dkd", "mld", "rld", "sdd")}).split()
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    args = train_tool.arguments()
    said = flatten(load_cfg(args.cfg, args.opts))
    assert {key: said[key] for key in TRAIN[line]} == TRAIN[line]
    assert args.resume == ("--resume" in words)


@pytest.mark.parametrize("line", EVAL)
def test_a_public_command_evaluates_what_it_evaluates_there(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval.py", *line.split()])
    args = eval_tool.arguments()
    assert (args.model, args.checkpoint, args.dataset, args.opts) == EVAL[line]


def test_weights_that_are_multiplied_begin_at_the_methods_own():
    for _, weights in LS_WEIGHTED.values():
        (method,) = {key.partition(".")[0] for key in weights}
        settings = flatten(load_cfg(None, ["DISTILLER.TYPE", method]))
        assert weights == {key: settings[key] for key in weights}
