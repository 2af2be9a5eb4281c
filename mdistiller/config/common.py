"""Which settings two runs must have in common to share data, a teacher and its passes. Does not import torch."""

import json
from collections.abc import Mapping
from typing import Any

from mdistiller.config.stated import BASE, flatten

DATA = ("DATASET.", "TASK.", "MODEL.", "DETECTION.", "LM.", "GENERATION.", "DEVICE", "SOLVER.BATCH_SIZE",
        "SOLVER.ACCUMULATE", "SOLVER.MAX_ITER", "SOLVER.EVAL_PERIOD", "EXPERIMENT.PLUGINS")
TEACHER = ("DISTILLER.TEACHER", "DISTILLER.FOLD_TEACHER", "SOLVER.AMP", "SOLVER.CHANNELS_LAST", "COMPILE")
PROCESS = ("SOLVER.EPOCHS", "EXPERIMENT.DETERMINISTIC", "TEACHER_CACHE.")


def data_settings(cfg: Mapping) -> str:
    """Everything that the batches of a configuration (a tree) depend on, as text that is equal for equal batches."""
    settings = flatten(cfg)
    return _text(settings, DATA, _data_seed(settings))


def teacher_settings(cfg: Mapping) -> str:
    """Everything that a teacher's passes over given images depend on, as text; see also `data_settings`."""
    return _text(flatten(cfg), TEACHER)


def group_settings(settings: Mapping[str, Any], seed: int) -> str:
    """What a run must have in common with others to train together with them, as text.

    `settings` are those that its file and overrides state, by dotted key; `seed` is its EXPERIMENT.SEED.
    """
    settings = {**BASE, **settings, "EXPERIMENT.SEED": seed}
    return _text(settings, DATA + TEACHER + PROCESS, _data_seed(settings))


def _text(settings, prefixes, seed=None):
    chosen = {key: value for key, value in settings.items() if key.startswith(prefixes) and key != "DATASET.SEED"}
    return json.dumps([chosen, seed], sort_keys=True, default=str)


def _data_seed(settings):
    own = settings["DATASET.SEED"]
    return settings["EXPERIMENT.SEED"] if own is None else own
