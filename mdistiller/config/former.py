"""What the records of earlier versions mean, where a key that came later, or a new default, changed the training.

Does not import torch: reports read records and do not know the methods.
"""

from collections.abc import Mapping
from typing import Any

# A key of a method -> what runs from before the key did, where this is not its default.
UNNAMED = {"SDD.CLIP_NORM": 0.0}
# Keys of methods whose default was another one in earlier versions, or is not that of UNNAMED -> their default now.
# run.json lists the settings that differed from the defaults of its own version.
CHANGED = {"SDD.CLIP_NORM": 40.0, "WKD.LOSS.WKD_LOGIT_WEIGHT": 600.0, "WKD.SAMPLES": 500}


def completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record by dotted name, with those of UNNAMED that belong to its method and are not named."""
    nodes = {name.split(".")[0] for name in said}
    return {name: value for name, value in UNNAMED.items() if name.split(".")[0] in nodes} | dict(said)


def changed(said: Mapping[str, Any], overridden: Mapping[str, Any]) -> set[str]:
    """The names of those settings of a completed record that differ from the defaults of this version.

    `overridden` are those that differed from the defaults of the record's version, by its run.json.
    """
    return {*overridden} - CHANGED.keys() | {
        name for name, default in CHANGED.items() if name in said and said[name] != default}
