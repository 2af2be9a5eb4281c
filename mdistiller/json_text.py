"""Safe reading of JSON texts, and which of their values are measurements. Imports no torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdistiller.errors import UserError

LARGEST = 1e30  # upper limit of a measurement, whose square can still be summed
ANSWERS, SCORES = "answers", "scores.json"  # in a run folder: answers/<checkpoint>/scores.json
DEEPEST = 20  # levels of nested objects and lists; files of this project have three


def is_measurement(value: Any) -> bool:
    """Whether a value is a finite number of at most LARGEST in magnitude."""
    return isinstance(value, int | float) and abs(value) <= LARGEST  # False for NaN


def parse_json(text: str, source: str | Path) -> Any:
    """The content of a JSON text.

    Raises JSONDecodeError when the text is incomplete, UserError when it is nested too deeply or holds a huge integer.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise UserError(f"{source}: expected at most {DEEPEST} levels of objects and lists") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise UserError(f"{source}: cannot be read: {error}") from None
    if text.count("{") + text.count("[") < DEEPEST:  # nearly always, and much faster: a run has a line for each epoch
        return content
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


def read_answer(text: str, numbers: Iterable[str] = ("rouge_l",)) -> dict | None:
    """One line of a file of answers (`mdistiller.engine.generation`); None if it is incomplete or damaged.

    It has an index, prompt and answer as texts, a list of texts as references, and measurements by the names `numbers`.
    """
    try:
        line = parse_json(text, "")
        fits = type(line["index"]) is int and all(isinstance(line[key], str) for key in ("prompt", "answer"))
        fits = fits and isinstance(line["references"], list) and all(isinstance(one, str) for one in line["references"])
        return line if fits and all(is_measurement(line[key]) for key in numbers) else None
    except (ValueError, KeyError, TypeError):
        return None
