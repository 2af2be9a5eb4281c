"""Labels for configurations with the same method, data and networks: the settings that differ."""

from collections.abc import Hashable, Sequence

from mdistiller.config.stated import BASE
from mdistiller.config.words import shown
from mdistiller.runs.matching import equal
from mdistiller.runs.records import RunRecord, agreed, counts, data_of

DIGITS = 8  # of a SHA-256, shown if teachers or data of the same name differ
DIGESTS = {"teacher": lambda group: group[0].teacher_sha256, "data": data_of}


def differences(groups: Sequence[Sequence[RunRecord]], kinds: Sequence[Hashable]) -> list[str]:
    """For each group of runs (one configuration), the settings that differ from other groups of its kind.

    `kinds` has one value per group. The text is "KEY value, ...", empty for the only group of its kind; two groups of
    one kind never have the same text.
    """
    by_kind: dict[Hashable, list] = {}
    for group, kind in zip(groups, kinds, strict=True):
        by_kind.setdefault(kind, []).append(group)
    texts = {kind: iter(_differing(each)) for kind, each in by_kind.items()}
    return [next(texts[kind]) for kind in kinds]


def _differing(groups):
    """The label of each of the groups of one method: the keys that count, sorted, and the digests that differ."""
    method = groups[0][0].config["DISTILLER.TYPE"]
    keys = {key for group in groups for key in group[0].config if counts(key, method)} - {"DISTILLER.TYPE"}
    defaults = BASE | agreed(run.unnamed_by_older for group in groups for run in group)
    columns = {name: [_value(group, name, defaults) for group in groups] for name in [*sorted(keys), *DIGESTS]}
    varying = {name: values for name, values in columns.items() if not all(equal(values[0], value) for value in values)}
    return [", ".join(f"{name} {_text(values[place], name)}" for name, values in varying.items())
            for place in range(len(groups))]


def _value(group, name, defaults):
    """The value that a group has in a column; runs of older versions do not name their data, nor every key."""
    if name in DIGESTS:
        return DIGESTS[name](group) or defaults.get(name)
    return group[0].config.get(name, defaults.get(name, "at its default"))


def _text(value, name):
    if name in DIGESTS:
        return digits(value)
    return value if isinstance(value, str) and value else shown(value)


def digits(digest: str | None) -> str:
    """The beginning of a SHA-256, for a label."""
    return (digest or "unknown")[:DIGITS]
