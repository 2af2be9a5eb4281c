"""The paper's tables as data: the printed number of each cell and the config that reproduces it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mdistiller.config.files import read_yaml
from mdistiller.registry import Registry

DATA = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One training of the paper, or of a control beside it, with all settings that are known."""

    table: str
    method: str  # the paper's spelling, such as EA-MLD+LS
    config: str  # a file, relative to the repository
    overrides: tuple[str, ...]  # "KEY=VALUE"
    settings: Mapping[str, Any]  # dotted config key -> value, schedule and networks included
    views: int  # augmented views of each image in a step
    printed: float


@dataclass(frozen=True)
class Cell:
    """One number of a table, and the training that produces it (None for language models, see `runs.language`)."""

    table: str
    row: str
    column: str
    printed: float  # NaN for a control, which is not in the paper
    std: float | None
    baseline: tuple[str, str] | None  # (row, column) of the baseline cell that it is compared with
    note: str
    run: Run | None
    metric: str | None = None  # name of the metric in summary.json; None: the headline metric


@dataclass(frozen=True)
class Table:
    """A table with its layout. `rows` and `columns`: label -> further values the paper prints (teacher_acc, ...)."""

    name: str
    title: str
    metric: str
    runs: int | None  # number of seeds: the paper's or, where it names none, that of a sound comparison
    columns: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]
    cells: Mapping[tuple[str, str], Cell]  # by (row, column)
    average_gain: Mapping[str, float] = field(default_factory=dict)  # printed in the paper, by row
    inferred: str = ""  # settings that nobody published


@cache
def load_runs() -> tuple[Run, ...]:
    """Every training of the paper's tables 1-6, 8, 9, A1 and A2, in the order of runs.yaml."""
    data = read_yaml(DATA / "runs.yaml")
    runs = []
    for group in data["groups"]:
        for pair, own in group["runs"].items():
            said = {"overrides": (), "views": 1, **group, **own}
            recipe, networks = data["recipes"][group["recipe"]], data["networks"][pair]
            runs.append(Run(
                table=group["table"],
                method=group["method"],
                config=group["config"].format(pair=pair),
                overrides=tuple(said["overrides"]),
                settings={**recipe, **networks, **group["settings"], **own.get("settings", {})},
                views=said["views"],
                printed=own["printed"],
            ))
    return tuple(runs)


@cache
def load_tables() -> Registry:
    """All tables by name ("1" ... "A1" ... "C5"); lookup ignores case, an unknown name raises UserError."""
    tables, data = Registry("table"), read_yaml(DATA / "tables.yaml")
    for name, spec in data.items():
        if "like" in spec:
            model = data[spec["like"]]
            rows = {row: model["rows"][row] for row in spec.get("rows", model["rows"])}
            spec = {**model, "title": spec["title"], "rows": rows, "average_gain": {}}
        tables[name] = _table(name, spec)
    return tables


def covered_tables(names: Sequence[str]) -> list[Table]:
    """The tables of these names, or with "all" every table but those of language models.

    Raises UserError for an unknown name.
    """
    tables = load_tables()
    if [name.lower() for name in names] == ["all"]:
        return [table for table in tables.values() if all(cell.run for cell in table.cells.values())]
    return [tables[name] for name in dict.fromkeys(map(tables.canonical, names))]


def _table(name, spec):
    rows = {**spec["rows"], **spec.get("controls", {})}
    columns = {label: attributes or {} for label, attributes in spec["columns"].items()}
    cells = {}
    for row, of_row in rows.items():
        for index, (column, of_column) in enumerate(columns.items()):
            baseline = (of_row["baseline"], column) if "baseline" in of_row else None
            if "baseline" in of_column:
                baseline = (row, of_column["baseline"])
            if baseline and (baseline[0] not in rows or baseline[1] not in columns):
                baseline = None  # Table C4 prints the variants alone
            cells[row, column] = Cell(
                table=name,
                row=row,
                column=column,
                printed=of_row["printed"][index] if "printed" in of_row else math.nan,
                std=of_row["std"][index] if "std" in of_row else None,
                baseline=baseline,
                note=of_row.get("notes", {}).get(column, ""),
                metric=of_column.get("metric"),
                run=_run_of(name, spec.get("config"), row, of_row, column, of_column),
            )
    gains = spec.get("average_gain", {})
    return Table(name, spec["title"], spec.get("metric", "top-1"), spec.get("runs"), columns, rows, cells, gains,
                 spec.get("inferred", ""))


def _run_of(table, template, row, of_row, column, of_column):
    """The run with the cell's config and overrides: of this table, or else the same training of another table.

    A control is the run of its config with its overrides.
    """
    if template is None:
        return None
    config = template.format(**{**of_column, **of_row, "row": row, "column": column})
    overrides = (*of_row.get("overrides", ()), *of_column.get("overrides", ()))
    same = [run for run in load_runs() if (run.config, run.overrides) == (config, overrides)]
    if "printed" not in of_row:
        plain = next(run for run in load_runs() if (run.config, run.overrides) == (config, ()))
        return replace(plain, table=table, method=row, overrides=overrides, printed=math.nan)
    return next((run for run in same if run.table == table), same[0])
