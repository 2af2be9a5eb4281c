"""Accuracy per class and hardest images that tools/samples.py left in run folders, for the page."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mdistiller.errors import UserError
from mdistiller.files import read_plain
from mdistiller.report.book import Book
from mdistiller.runs.reading import is_measurement, parse_json
from mdistiller.runs.records import RunRecord

FILE = "samples.json"
NUMBERS = ("weight", "loss", "entropy_student", "entropy_teacher")
LABELS = ("target", "student", "teacher")
PNG = b"\x89PNG"


@dataclass(frozen=True, eq=False)
class Samples:
    """Of one run: names of the classes, percent of their images that student and teacher get right, hardest images.

    `hardest` are dicts with the PNG `image`, the names of `target`, `student` and `teacher`, and NUMBERS.
    """

    run: RunRecord
    classes: list[str]
    student: list[float | None]
    teacher: list[float | None]
    hardest: list[dict[str, Any]]


def samples_of(runs: Sequence[RunRecord]) -> list[Samples]:
    """The samples of every run that has a file of them. Raises UserError, naming the file, for a damaged one."""
    return [_read(run, run.path / FILE) for run in runs if run.kept is None and (run.path / FILE).is_file()]


def class_gains(book: Book, samples: Sequence[Samples]) -> list[dict[str, Any]]:
    """For the chart of classes: each EA variant's gain over its baseline in points, means over the seeds of both.

    A configuration without such a baseline is compared with its teacher.
    """
    by_entry: dict[int, list[Samples]] = {}
    for one in samples:
        entry = book.entry_of.get(one.run.path)
        if entry is not None:
            by_entry.setdefault(entry.number, []).append(one)
    baselines = {entry.number: baseline for entry, baseline, _ in book.gains}
    found = []
    for entry in book.entries:
        mine, baseline = by_entry.get(entry.number, []), baselines.get(entry.number)
        theirs = by_entry.get(baseline.number, []) if baseline else []
        if mine and all(one.classes == mine[0].classes for one in (*mine, *theirs)):
            other = _means([one.student for one in theirs]) or _means([one.teacher for one in mine])
            words = baseline.label if theirs else f"the teacher {entry.first.config['DISTILLER.TEACHER']}"
            gains = [None if a is None or b is None else round(a - b, 4)
                     for a, b in zip(_means([one.student for one in mine]), other, strict=True)]
            found.append((bool(theirs), {"entry": entry.number, "over": words, "classes": mine[0].classes,
                                         "gains": gains}))
    return [one for _, one in sorted(found, key=lambda pair: not pair[0])]


def _means(rows):
    """The mean of each column of the values that are there."""
    columns = ([value for value in column if value is not None] for column in zip(*rows, strict=True))
    return [fmean(column) if column else None for column in columns]


def _read(run, path: Path):
    try:
        content = parse_json(read_plain(path), path)
        classes = [str(name) for name in content["classes"]]
        accuracies = [_accuracies(content[name], len(classes)) for name in ("student", "teacher")]
        return Samples(run, classes, *accuracies, [_image(one, classes) for one in content["hardest"]])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not what tools/samples.py writes ({type(error).__name__}); write it again, or "
                        "delete it") from None


def _accuracies(values, number):
    if len(values) != number or not all(value is None or is_measurement(value) for value in values):
        raise ValueError
    return values


def _image(one, classes):
    try:
        png = base64.b64decode(one["image"], validate=True)
    except binascii.Error:
        raise ValueError from None
    labels = {name: one[name] for name in LABELS}
    if not png.startswith(PNG) or not all(is_measurement(one[name]) for name in NUMBERS) or min(labels.values()) < 0:
        raise ValueError
    return {"image": png, **{name: classes[label] for name, label in labels.items()},
            **{name: one[name] for name in NUMBERS}}
