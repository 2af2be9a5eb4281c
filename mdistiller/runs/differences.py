"""Labels for configurations with the same method, data and networks: the settings that differ."""

from collections.abc import Hashable, Sequence

from mdistiller.config.stated import BASE
from mdistiller.config.words import shown
from mdistiller.runs.matching import equal
from mdistiller.runs.records import RunRecord, counts

DIGITS = 8  # of a teacher's SHA-256, shown if teachers of the same name have different weights


def differences(groups: Sequence[Sequence[RunRecord]], kinds: Sequence[Hashable]) -> list[str]:
    """For each group of runs (one configuration), the settings that differ from other groups of its kind.

    `kinds` has one value per group. The text is "KEY value, ...", empty for the only group of its kind; two groups of
    one kind never have the same text.
    """
    by_kind: dict[Hashable, list] = {}
    for group, kind in zip(groups, kinds, strict=True):
        by_kind.setdefault(kind, []).append(group[0])
    differing = {kind: _differing(runs) for kind, runs in by_kind.items()}
    teachers = {kind: {_teacher(run) for run in runs} for kind, runs in by_kind.items()}
    texts = []
    for group, kind in zip(groups, kinds, strict=True):
        words = [f"{key} {_text(_value(group[0], key))}" for key in differing[kind]]
        words += [f"teacher {str(_teacher(group[0]))[:DIGITS]}"] if len(teachers[kind]) > 1 else []
        texts.append(", ".join(words))
    return texts


def _differing(runs):
    """The keys that count and that are not constant over runs of one method, sorted."""
    first, *others = runs
    keys = sorted({key for run in runs for key in run.config} - {"DISTILLER.TYPE"})
    return [key for key in keys if counts(key, first.config["DISTILLER.TYPE"])
            and not all(equal(_value(first, key), _value(other, key)) for other in others)]


def _teacher(run):
    return run.metadata.get("teacher_sha256")


def _value(run, key):
    return run.config.get(key, BASE.get(key, "at its default"))


def _text(value):
    return value if isinstance(value, str) and value else shown(value)
