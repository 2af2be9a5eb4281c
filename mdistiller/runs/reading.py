"""Safe reading of the files of a run: an incomplete file counts as missing, invalid content raises UserError."""

import json
import math
from pathlib import Path
from typing import Any

from mdistiller.config.words import shown
from mdistiller.errors import UserError
from mdistiller.files import read_plain, read_text
from mdistiller.json_text import ANSWERS, LARGEST, SCORES, is_measurement, parse_json

KINDS = {  # expected types of values in summary.json and run.json
    **dict.fromkeys(("epoch", "best_epoch", "wall_seconds", "num_classes", "num_train"), (int | float, "a number")),
    **dict.fromkeys(("versions", "overridden", "own_files"), (dict, "an object")),
    **dict.fromkeys(("status", "selected_on", "device", "commit", "command", "started"), (str, "a text")),
    **dict.fromkeys(("teacher_sha256", "data_sha256"), (str, "a text")),
    "headline": (str, "the name of a metric"),
}
NUMBERS = ("last_", "best_", "teacher_top", "teacher_loss")  # prefixes of keys whose values are numbers


def read_record(path: Path) -> dict[str, Any]:
    """The content of a summary.json or run.json; empty when the file is missing or incomplete.

    Raises UserError, naming file and key, for values of the wrong type.
    """
    try:
        content = parse_json(read_plain(path), path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return checked_record(content, path)


def checked_record(content: Any, source: str | Path) -> dict[str, Any]:
    """The content of a summary.json or run.json. Raises UserError, naming the key, for a value of the wrong type."""
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
    """The rows of a metrics.jsonl, one per epoch; incomplete lines are left out.

    Raises UserError for a line that does not hold numbers by name.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = parse_json(line, f"{path}, line {number}")
        except json.JSONDecodeError:
            continue
        numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
        if not numbers or "epoch" not in row:
            raise UserError(f"{path}, line {number}: expected an object with numbers, one of them named epoch")
        rows.append(row)
    return rows


def finite_points(rows: list[dict[str, float]], *keys: str) -> list[tuple[int, tuple[float, ...]]]:
    """(epoch, values of `keys`) of each row that has the first key; NaN for a value that is not a finite number.

    Rows with an invalid epoch number are left out.
    """
    points = []
    for row in rows:
        epoch = row["epoch"]
        if keys[0] in row and is_measurement(epoch) and 0 <= epoch <= 10**9:
            values = (row.get(key) for key in keys)
            points.append((epoch, tuple(value if is_measurement(value) else math.nan for value in values)))
    return points


def read_answers(folder: Path) -> dict[str, dict]:
    """The scores of generated answers of a run, by checkpoint ("best", "teacher", ...), set and n-gram rule.

    A score is a dict with `rouge_l`, in percent, `rouge_l_std` over the decoding seeds (None for one seed), and more;
    see `mdistiller.engine.generation`. An incomplete file counts as missing. Raises UserError, naming the file and the
    set, where these two are no numbers.
    """
    found = {}
    for path in sorted(folder.glob(f"{ANSWERS}/*/{SCORES}")):
        try:
            content = parse_json(read_plain(path), path)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        sets = content.items() if isinstance(content, dict) else ()
        if scores := {name: checked_scores(rules, f"{path}: {name[:80]}") for name, rules in sets}:
            found[path.parent.name] = scores
    return found


def checked_scores(rules: Any, source: str) -> dict[str, dict]:
    """{n-gram rule: scores} of a set, without what is no score; raises UserError for scores that are no numbers."""
    each = rules.items() if isinstance(rules, dict) else ()
    scores = {rule: one for rule, one in each if isinstance(one, dict) and "rouge_l" in one}
    for one in scores.values():
        spread = one.get("rouge_l_std")
        if not (is_measurement(one.get("rouge_l")) and (spread is None or is_measurement(spread))):
            raise UserError(f"{source}: expected numbers as rouge_l and rouge_l_std")
    return scores
