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
        by_kind.setdefault(kind, []).append(group)
    return [_own(group, by_kind[kind]) for group, kind in zip(groups, kinds, strict=True)]


def _own(group, rivals):
    run = group[0]
    keys = dict.fromkeys(key for one in (run, *(other[0] for other in rivals)) for key in one.config)
    differing = [key for key in sorted(keys) if counts(key, run.config["DISTILLER.TYPE"]) and key != "DISTILLER.TYPE"
                 and any(not equal(_value(run, key), _value(other[0], key)) for other in rivals)]
    words = [f"{key} {_text(_value(run, key))}" for key in differing]
    teacher = run.metadata.get("teacher_sha256")
    if any(other[0].metadata.get("teacher_sha256") != teacher for other in rivals):
        words.append(f"teacher {str(teacher)[:DIGITS]}")
    return ", ".join(words)


def _value(run, key):
    return run.config.get(key, BASE.get(key, "at its default"))


def _text(value):
    return value if isinstance(value, str) and value else shown(value)
