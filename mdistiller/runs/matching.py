"""Find the runs of a configuration by comparing settings key by key, never names. Does not import torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from mdistiller.config.stated import BASE
from mdistiller.places import RANDOM_TEACHER
from mdistiller.plugins import NAMED_BY, own_files, same_files, without_folders
from mdistiller.runs.records import RunRecord, counts, group_runs

TRIALS = {"coco_tiny": "coco"}  # small part of a data set -> the data set: its runs have another protocol
CONTENT = {  # data set of the paper's tables -> its classes and training images; other data in its format have others
    "cifar100": (100, 50_000), "tiny_imagenet": (200, 100_000), "imagenet": (1000, 1_281_167), "coco": (80, 117_266),
}
NEAR = 0.01  # relative difference of a number of images that rounding by class, or boxes left out, may cause
SETTLED = {"SOLVER.AMP": "auto"}  # the value that a run replaces by what it means on its device, and records
# If one of these differs, the run is another experiment. If another key that counts differs (schedule, batch size,
# fraction of the images), it is the same experiment with another protocol.
_WHAT = ("DISTILLER.STUDENT", "DISTILLER.TEACHER", "DISTILLER.LS", "DATASET.TYPE")


def fit(run: RunRecord, wanted: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The keys in which a run differs from the protocol of `wanted`, sorted; None when it is another experiment.

    `wanted` holds the settings that a file and overrides state (`mdistiller.config.stated`); all other keys must have
    their defaults. The defaults of a method are known only to its class; therefore run.json lists the settings that
    differ from them (`overridden`). Without this list the run is assumed to use the defaults.
    """
    config, method = run.config, run.config["DISTILLER.TYPE"]
    if method.upper() != wanted.get("DISTILLER.TYPE", BASE["DISTILLER.TYPE"]).upper():
        return None
    if (_teacher(config) == RANDOM_TEACHER) != (_teacher(wanted) == RANDOM_TEACHER) and method != "NONE":
        return None
    nodes = {key.split(".")[0] for key in config}
    if not all(_same(run, key, wanted) or _is_trial(run, key, wanted) for key in _WHAT if counts(key, method)):
        return None  # most runs are excluded here
    departures = []
    for key in wanted.keys() | BASE.keys() | config.keys():
        if not counts(key, method) or key == "DISTILLER.TYPE" or (key not in BASE and key.split(".")[0] not in nodes):
            continue  # last condition: the run's method does not read this node
        if not _same(run, key, wanted):
            if key.startswith("EA.") or key not in BASE:
                return None
            departures.append(key)
    return tuple(sorted(departures))


def best_group(runs: Iterable[RunRecord], wanted: Mapping[str, Any]) -> tuple[list[RunRecord], int]:
    """The finished runs, one per seed, of the configuration that fits `wanted` best, and how many others fit too.

    The best one has the fewest differences in protocol and data, then the most seeds. Runs of different configurations,
    with different teacher weights or data are never mixed.
    """
    fitting = [(departures, run) for run in runs if run.done and (departures := fit(run, wanted)) is not None]
    departed = {run.identity: len(departures) for departures, run in fitting}
    groups = sorted(group_runs(run for _, run in fitting), key=lambda group: (
        departed[group[0].identity] + len(other_content(group)), -len(group)))
    return (groups[0], len(groups) - 1) if groups else ([], 0)


def other_content(group: Iterable[RunRecord]) -> dict[str, tuple[int, int]]:
    """How the data of runs of one configuration depart from the data set that they name, such as "cifar100".

    {"classes" or "training images": (number found, number expected)}, with only what differs. Runs of older versions do
    not record the numbers and are taken to be right.
    """
    found = {}
    for run in group:
        classes, images = CONTENT.get(run.config["DATASET.TYPE"], (None, None))
        used = run.config.get("DATASET.TRAIN_FRACTION", 1.0) * (1 - run.config.get("DATASET.VAL_FRACTION", 0.0))
        there = run.metadata.get("num_classes"), run.metadata.get("num_train")
        if classes is None or None in there:
            continue
        if there[0] != classes:
            found["classes"] = there[0], classes
        expected = round(images * used)
        if abs(there[1] - expected) > max(NEAR * expected, 2 * classes):
            found["training images"] = there[1], expected
    return found


def _teacher(config):
    return config.get("DISTILLER.TEACHER_CHECKPOINT")


def _same(run, key, wanted):
    if key not in wanted and key not in BASE:
        return key not in run.changed
    if key in SETTLED and wanted.get(key) == SETTLED[key]:
        return True
    there, now = (settings.get(key, BASE.get(key)) for settings in (run.config, wanted))
    return equal(there, now) or key in NAMED_BY and _moved(run, there, now)


def _moved(run, there, now):
    """Whether a setting names Python files of the same names and content as a run used, in other folders."""
    if without_folders(there) != without_folders(now):  # first: nearly all runs end here, and no file is read
        return False
    return same_files(run.own_files, own_files({NAMED_BY[0]: now}))


def _is_trial(run, key, wanted):
    return key == "DATASET.TYPE" and TRIALS.get(run.config[key]) == wanted.get(key)


def equal(one: Any, other: Any) -> bool:
    """Whether two config values are equal, as YAML may write them: 4 and 4.0, "1e-4" and 0.0001, list and tuple."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, str) != isinstance(other, str):
        try:
            return float(one) == float(other)
        except (TypeError, ValueError):
            return False
    return one == other
