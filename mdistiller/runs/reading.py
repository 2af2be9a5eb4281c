"""Files of a run's record, read with care: damaged, foreign or hostile content is a gap or one line of error."""

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from mdistiller.errors import UserError
from mdistiller.files import read_plain

KINDS = {  # of what summary.json and run.json hold, where a reader counts on it
    **dict.fromkeys(("epoch", "best_epoch", "wall_seconds"), (int | float, "a number")),
    **dict.fromkeys(("versions", "overridden"), (dict, "an object")),
    **dict.fromkeys(("status", "selected_on", "device", "commit", "command", "teacher_sha256"), (str, "a text")),
    "headline": (str, "the name of a metric"),
}
NUMBERS = ("last_", "best_", "teacher_top", "teacher_loss")  # how names of numbers begin; "..._per_second" is one too
LARGEST = 1e30  # no measurement is larger; squares of such numbers can still be added
DEEPEST = 20  # levels of objects and lists; our own records have three


def shown(value: Any) -> str:
    """A value for a message of one line, however large or deep it is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} too large to print"


def is_measurement(value: Any) -> bool:
    """Whether a value is a finite number of a size that can be measured."""
    return isinstance(value, int | float) and abs(value) <= LARGEST  # False for NaN


def parse_json(text: str, source: str | Path) -> Any:
    """The content of a JSON text. Raises JSONDecodeError where it is not whole, UserError for what no record holds."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise UserError(f"{source}: expected at most {DEEPEST} levels of objects and lists") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise UserError(f"{source}: cannot be read: {error}") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
    if level:
        raise UserError(f"{source}: expected at most {DEEPEST} levels of objects and lists")
    return content


def _children(value):
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_record(path: Path) -> dict[str, Any]:
    """summary.json or run.json; empty where it is missing or not whole.

    Raises UserError, naming file and key, for content that is whole and is not such a record.
    """
    try:
        content = parse_json(read_plain(path), path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return checked_record(content, path)


def checked_record(content: Any, source: str | Path) -> dict[str, Any]:
    """The content of summary.json or run.json, if its values are of the kinds that readers count on."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected an object, found {type(content).__name__}")
    for key, value in content.items():
        number = key.startswith(NUMBERS) or key.endswith("_per_second")
        kind, words = KINDS.get(key, (int | float, "a number") if number else (object, ""))
        if value is None or key.endswith("_loss") and isinstance(value, float):  # a loss may be infinite
            continue
        if not isinstance(value, kind):
            raise UserError(f"{source}: {key[:80]}: expected {words}, found {shown(value)}")
        if kind == int | float and not is_measurement(value):
            raise UserError(f"{source}: {key[:80]}: expected a number of at most {LARGEST:g}, found {shown(value)}")
    return content


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, one an epoch, as they were written; a line that is not whole is left out.

    Raises UserError for a line of something else.
    """
    records = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            record = parse_json(line, f"{path}, line {number}")
        except json.JSONDecodeError:
            continue
        numbers = isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values())
        if not numbers or "epoch" not in record:
            raise UserError(f"{path}, line {number}: expected numbers by name, epoch among them")
        records.append(record)
    return records


def read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    try:
        return read_plain(path, errors="replace")
    except OSError:
        return ""


def finite_points(records: list[dict[str, float]], *keys: str) -> list[tuple[int, tuple[float, ...]]]:
    """(epoch, values of `keys`) of each record that holds the first key; NaN where a value is no measurement.

    A record whose epoch is no count is left out.
    """
    points = []
    for record in records:
        epoch = record["epoch"]
        if keys[0] in record and is_measurement(epoch) and 0 <= epoch <= 10**9:
            values = (record.get(key) for key in keys)
            points.append((epoch, tuple(value if is_measurement(value) else math.nan for value in values)))
    return points
