"""What the records of earlier versions mean, where a key that came later, or a new default, changed the training.

Does not import torch: reports read records and do not know the methods.
"""

from collections.abc import Mapping
from typing import Any

# Keys of methods whose default was another one in earlier versions, or is not that of `unnamed` -> their default now.
# run.json lists the settings that differed from the defaults of its own version.
CHANGED = {"SDD.CLIP_NORM": 40.0, "SDD.WARMUP": 1, "WKD.LOSS.WKD_LOGIT_WEIGHT": 600.0, "WKD.SAMPLES": 500}


def unnamed(said: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of methods -> what a run from before the key did, where this is not its default.

    `said` are the settings that its record names, by dotted name.
    """
    as_dkd = said.get("SDD.LOSS") == "dkd" and "DKD.WARMUP" in said
    return {"SDD.CLIP_NORM": 0.0} | ({"SDD.WARMUP": said["DKD.WARMUP"]} if as_dkd else {})


def completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record by dotted name, with those of `unnamed` that belong to its method and are not named."""
    nodes = {name.split(".")[0] for name in said}
    return {name: value for name, value in unnamed(said).items() if name.split(".")[0] in nodes} | dict(said)


def changed(said: Mapping[str, Any], overridden: Mapping[str, Any]) -> set[str]:
    """The names of those settings of a completed record that differ from the defaults of this version.

    `overridden` are those that differed from the defaults of the record's version, by its run.json.
    """
    return {*overridden} - CHANGED.keys() | {
        name for name, default in CHANGED.items() if name in said and said[name] != default}
