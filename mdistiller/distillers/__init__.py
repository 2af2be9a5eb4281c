"""Distillation methods. Importing this package registers every method file in it, plain and entropy-adaptive."""

import importlib
import logging
import pkgutil

from torch import Tensor

from mdistiller.config.loading import as_loaded
from mdistiller.distillers.base import Distiller, register
from mdistiller.distillers.declared import class_for, without_effect
from mdistiller.distillers.kd import kd_loss
from mdistiller.registry import DISTILLERS, ea_name

log = logging.getLogger("mdistiller")
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_distiller(cfg, student, teacher, data_info=None, task=None) -> Distiller:
    """The distiller that `cfg.DISTILLER.TYPE` names, or its EA- variant if `cfg.DISTILLER.EA` is set.

    For classification, networks return logits (B, C), `(logits, features)` or an object with these (see `Output`).
    `data_info` is an object or a mapping with the training set's name, num_classes, num_train, image_size and targets;
    entries that the method does not need may be missing. `task` defines what a sample is; None means classification.
    What the user stated and the method does not read is named in the log. Raises UserError for an unknown method, or
    for a task or networks that the method cannot use.
    """
    cfg = as_loaded(cfg)
    name = DISTILLERS.canonical(cfg.DISTILLER.TYPE, cfg.TASK.TYPE)
    name = ea_name(name) if cfg.DISTILLER.EA else name
    method = class_for(DISTILLERS[name], task)
    for words in without_effect(cfg, method):
        log.warning("%s", words)
    return method(cfg, student, teacher, data_info, task)


def plain_kd_loss(cfg, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """The loss of plain distillation at KD.TEMPERATURE, as a common measure of all methods: (B, C), (B, C) -> (B,)."""
    return kd_loss(logits_student, logits_teacher, cfg.KD.TEMPERATURE)


__all__ = ["DISTILLERS", "Distiller", "build_distiller", "class_for", "plain_kd_loss", "register"]
