"""Read finished runs that are archived without weights: runs.jsonl (a line per run), metrics.csv (a row per epoch)."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from mdistiller.errors import UserError
from mdistiller.files import csv_rows, read_plain
from mdistiller.runs.reading import parse_json

RUNS, METRICS = "runs.jsonl", "metrics.csv"
PARTS = ("config", "summary", "run")
LONGEST_NAME = 255  # bytes, of file systems


def read_kept(path: Path) -> dict[str, dict[str, Any]]:
    """Read a runs.jsonl: name of a run -> its `config` (nested), `summary` and `run` (the content of run.json).

    Raises UserError, naming file and line, for invalid content.
    """
    runs = {}
    try:
        lines = read_plain(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line, f"{path}, line {number}")
            name = row["name"]
            named = _is_name(name) and name not in runs
            whole = named and all(isinstance(row[part], dict) for part in PARTS)
        except (json.JSONDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number}: expected a run's name, config, summary and run, each name once")
        runs[name] = row
    return runs


def _is_name(name):
    """Whether a value can be the name of a folder."""
    try:
        return Path(name).name == name != ".." and "\0" not in name and len(os.fsencode(name)) <= LONGEST_NAME
    except (TypeError, UnicodeEncodeError):
        return False


def read_kept_metrics(path: Path) -> dict[str, list[dict]]:
    """Read a metrics.csv: name of a run -> one dict per epoch. Raises UserError for an invalid row."""
    runs: dict[str, list[dict]] = {}
    if not path.is_file():
        return runs
    try:
        rows = csv_rows(path, errors="replace")
    except ValueError as error:
        raise UserError(f"{path}: {error}; copy or restore it") from None
    try:
        for row in rows:
            name = row.pop("run")
            numbers = {key: _number(text) for key, text in row.items() if text}
            if "epoch" not in numbers:
                raise KeyError("epoch")
            runs.setdefault(name, []).append(numbers)
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error):
        raise UserError(f"{path}, line {rows.line_num}: expected a run's name and numbers") from None
    return runs


def _number(text):
    return int(text) if text.lstrip("-").isdecimal() else float(text)
