"""Which runs were made with a configuration: compared key by key, by what they say, never by name. Needs no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from mdistiller.config.stated import BASE
from mdistiller.runs.records import RunRecord, counts, group_runs

RANDOM_TEACHER = "random"  # the value of DISTILLER.TEACHER_CHECKPOINT that trials of a pipeline use
# With other values of these a run is no try at the same thing. With another value of any other key that counts (the
# schedule, the batch, the part of the images) it is one, by another protocol.
TRIALS = {"coco_tiny": "coco"}  # a few of a data set's images -> the data set: runs on them are by another protocol
_WHAT = ("DISTILLER.STUDENT", "DISTILLER.TEACHER", "DISTILLER.LS", "DATASET.TYPE")


def fit(run: RunRecord, wanted: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The keys in which the run departs from the protocol of `wanted`; None when it is another experiment altogether.

    `wanted` are the keys that a file and overrides state (`mdistiller.config.stated`); all others are to be at their
    defaults. Those of a method are known to its class alone: run.json says which of them the run had changed
    (`overridden`); in a folder without that record they are taken to be at their defaults.
    """
    config, method = run.config, run.config["DISTILLER.TYPE"]
    if method.upper() != wanted.get("DISTILLER.TYPE", BASE["DISTILLER.TYPE"]).upper():
        return None
    if (_teacher(config) == RANDOM_TEACHER) != (_teacher(wanted) == RANDOM_TEACHER) and method != "NONE":
        return None
    nodes = {key.split(".")[0] for key in config}
    if not all(_same(run, key, wanted) or _is_trial(run, key, wanted) for key in _WHAT if counts(key, method)):
        return None  # settles most of them
    departures = []
    for key in wanted.keys() | BASE.keys() | config.keys():
        if not counts(key, method) or key == "DISTILLER.TYPE" or (key not in BASE and key.split(".")[0] not in nodes):
            continue  # the last: a node that the run's method does not read
        if not _same(run, key, wanted):
            if key.startswith("EA.") or key not in BASE:
                return None
            departures.append(key)
    return tuple(sorted(departures))


def best_group(runs: Iterable[RunRecord], wanted: Mapping[str, Any]) -> tuple[list[RunRecord], int]:
    """The finished runs of one configuration that fit `wanted` best, one a seed, and how many other groups fit.

    Nearest protocol first, then most seeds; runs of different identity (teacher's weights included) are never mixed.
    """
    fitting = [(departures, run) for run in runs if run.done and (departures := fit(run, wanted)) is not None]
    nearest = {run.identity: len(departures) for departures, run in fitting}
    groups = sorted(group_runs(run for _, run in fitting), key=lambda group: (nearest[group[0].identity], -len(group)))
    return (groups[0], len(groups) - 1) if groups else ([], 0)


def _teacher(config):
    return config.get("DISTILLER.TEACHER_CHECKPOINT")


def _same(run, key, wanted):
    if key not in wanted and key not in BASE:
        return key not in run.facts.get("overridden", ())
    return equal(run.config.get(key, BASE.get(key)), wanted.get(key, BASE.get(key)))


def _is_trial(run, key, wanted):
    return key == "DATASET.TYPE" and TRIALS.get(run.config[key]) == wanted.get(key)


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a config mean the same, as YAML writes them: 4 and 4.0, "1e-4" and 0.0001, a tuple."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, str) != isinstance(other, str):
        try:
            return float(one) == float(other)
        except (TypeError, ValueError):
            return False
    return one == other
