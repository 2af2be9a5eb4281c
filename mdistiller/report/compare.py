"""A Markdown table of all finished runs in a folder."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdistiller import markdown
from mdistiller.errors import UserError, counted
from mdistiller.report.book import method_of
from mdistiller.runs.differences import differences, digits
from mdistiller.runs.records import (
    RunRecord,
    data_of,
    group_runs,
    mean_and_std,
    metric_words,
    readable_runs,
    repeated_runs,
    split_by_data,
)

COLUMNS = ("data", "method", "teacher", "student", "epochs", "seeds")


def comparison(root: str | Path) -> str:
    """A Markdown table with a line for each teacher and each configuration, read only from the runs in `root`.

    Configurations with the same method, data, networks and epochs list the settings in which they differ. Raises
    UserError when there is no finished run.
    """
    runs = readable_runs(root)
    done = [run for run in runs if run.done]
    if not done:
        raise UserError(f"{root}: no finished run below it")
    rows = [_teacher_row(run, words) for run, words in teachers(done)]
    groups = group_runs(done)
    rows += [row(group, words) for group, words in zip(groups, differences(groups, [row(g)[:5] for g in groups]),
                                                       strict=True)]
    cells = [[markdown.cell(text) for text in line] for line in (head(done), *dict.fromkeys(rows))]
    lines = [markdown.table(cells[0], cells[1:], aligned=True)]
    if len(done) < len(runs):
        lines.append(f"\nNot finished and left out: {counted(len(runs) - len(done), 'run')}.")
    notes = [*repeated_words([run for run, _ in repeated_runs(done)]), *edited_words(groups)]
    lines += [f"\n{markdown.prose(text)}" for text in notes]
    return "\n".join(lines)


def repeated_words(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence about runs that are in no table, because other runs of their seeds are counted; nothing for none."""
    names = ", ".join(str(run.path) for run in runs)
    number = counted(len(runs), "run")
    return [f"{number} of a seed that is counted already (by the run started last): {names}"] if runs else []


def edited_words(groups: Iterable[Sequence[RunRecord]]) -> list[str]:
    """A sentence for each configuration whose runs used several versions of a Python file of the user."""
    words = []
    for group in groups:
        for name in sorted({name for run in group for name in run.own_files}):
            versions: dict[str, list[str]] = {}
            for run in group:
                if name in run.own_files:
                    versions.setdefault(run.own_files[name], []).append(str(run.seed))
            if len(versions) > 1:
                seeds = "; ".join(f"seed{'s' * (len(each) > 1)} {', '.join(each)}" for each in versions.values())
                words.append(f"{method_of(group[0])}: {len(versions)} versions of {name} are averaged ({seeds})")
    return words


def head(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """The header of the table; the last two columns name the headline metrics of the runs."""
    metrics = ", ".join(sorted({metric_words(run.headline) for run in runs}))
    return *COLUMNS, f"{metrics}, last epoch", f"{metrics}, best epoch"


def percent(values) -> str:
    """Mean and standard deviation as text ("72.31 ± 0.25"), or a single value without deviation."""
    mean, deviation = mean_and_std(values)
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def teachers(runs: Iterable[RunRecord]) -> list[tuple[RunRecord, str]]:
    """A run of each teacher on each data, and words for the data if the teacher has results on several."""
    found: dict[tuple, list[RunRecord]] = {}
    for run in runs:
        if run.teacher_result is not None:
            found.setdefault((run.config["DATASET.TYPE"], run.teacher_sha256), []).append(run)
    told = []
    for parts in map(split_by_data, found.values()):
        told += [(part[0], f"data {digits(data_of(part))}" if len(parts) > 1 else "") for part in parts]
    return told


def _teacher_row(run, words):
    name, result = run.config["DISTILLER.TEACHER"], f"{run.teacher_result:.2f}"
    return (run.config["DATASET.TYPE"], _with(words, "teacher"), name, "", "", "", result, "")


def _with(words, name):
    return f"{name} ({words})" if words else name


def row(group: list[RunRecord], words: str = "") -> tuple[str, ...]:
    """The cells of one configuration in the order of `head`; `words` list its differences from others of its method."""
    config = group[0].config
    teacher = "" if config["DISTILLER.TYPE"] == "NONE" else config["DISTILLER.TEACHER"]
    words = ", ".join(filter(None, (words, "on validation images" if group[0].on_validation else "")))
    return (
        config["DATASET.TYPE"],
        _with(words, method_of(group[0])),
        teacher,
        config["DISTILLER.STUDENT"],
        str(group[0].epochs),
        str(len(group)),
        percent(run.result("last") for run in group),
        percent(run.result("best") for run in group),
    )


