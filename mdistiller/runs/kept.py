"""Archive finished runs of a study without weights: runs.jsonl (a line per run), metrics.csv (a row per epoch)."""

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError, writing
from mdistiller.files import alone_in, read_plain, write_text
from mdistiller.runs.reading import parse_json

RUNS, METRICS = "runs.jsonl", "metrics.csv"
OF_THE_MACHINE = ("host", "package", "teacher_checkpoint", "teacher_cache", "sessions")  # not archived
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
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
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


def keep_records(runs: Iterable, folder: Path) -> int:
    """Add finished runs to the two files in `folder`; returns their number. A run of the same name is replaced.

    Entries of run.json that identify the machine are left out. Raises UserError for two runs of one name, for a folder
    that contains the runs themselves, and for a path where no file can be written; RunError when the disk is full. The
    files are then left unchanged. Several processes may add to one folder at once.
    """
    archived, folder = {}, Path(folder)
    for run in runs:
        name = run.path.name
        if not run.done:
            continue
        if (folder / name).resolve() == run.path.resolve():
            raise UserError(f"{run.path}: cannot be archived into its own folder; choose another folder")
        if name in archived:
            raise UserError(f"{run.path}: {archived[name].path} has the same name; names must be different")
        archived[name] = run
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        _add(archived, folder)
    return len(archived)


def _add(archived, folder):
    """Add {name: run} to the two files."""
    rows = read_kept(folder / RUNS) if (folder / RUNS).is_file() else {}
    metrics = read_kept_metrics(folder / METRICS)
    for name, run in archived.items():
        metadata = {key: value for key, value in run.metadata.items() if key not in OF_THE_MACHINE}
        config = read_yaml(run.path / "config.yaml") if run.kept is None else run.kept["config"]
        rows[name] = {"name": name, "config": config, "summary": dict(run.summary), "run": metadata}
        rows[name] |= {"answers": run.answers} if run.answers else {}
        metrics[name] = run.metrics()
    write_text(folder / METRICS, _csv(metrics))
    write_text(folder / RUNS, "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)))


def _csv(metrics):
    columns = dict.fromkeys(key for name in sorted(metrics) for row in metrics[name] for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["run", *columns], lineterminator="\n")
    writer.writeheader()
    for name in sorted(metrics):
        writer.writerows({"run": name, **row} for row in metrics[name])
    return text.getvalue()
