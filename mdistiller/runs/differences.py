"""Labels for configurations with the same method, data and networks: the settings that differ."""

from collections.abc import Hashable, Sequence

from mdistiller.config.stated import BASE
from mdistiller.config.words import shown
from mdistiller.runs.matching import equal
from mdistiller.runs.records import RunRecord, counts, data_of

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
    differing = {kind: _differing(each) for kind, each in by_kind.items()}
    return [", ".join(f"{name} {_text(group, name)}" for name in differing[kind])
            for group, kind in zip(groups, kinds, strict=True)]


def _differing(groups):
    """The keys that count, sorted, and the digests that are not constant over groups of one method."""
    first, *others = groups
    method = first[0].config["DISTILLER.TYPE"]
    keys = {key for group in groups for key in group[0].config if counts(key, method)} - {"DISTILLER.TYPE"}
    return [name for name in [*sorted(keys), *DIGESTS]
            if not all(equal(_value(first, name), _value(other, name)) for other in others)]


def _value(group, name):
    if name in DIGESTS:
        return DIGESTS[name](group)
    return group[0].config.get(name, BASE.get(name, "at its default"))


def _text(group, name):
    value = _value(group, name)
    if name in DIGESTS:
        return digits(value)
    return value if isinstance(value, str) and value else shown(value)


def digits(digest: str | None) -> str:
    """The beginning of a SHA-256, for a label."""
    return (digest or "unknown")[:DIGITS]
