"""The paper's tables of language models, filled from runs and their scored answers."""

import math
import shlex
from collections.abc import Sequence

from mdistiller.errors import counted
from mdistiller.report.formats import csv_lines
from mdistiller.report.layout import (
    MISSING,
    NOTHING,
    Block,
    Commands,
    Grid,
    Heading,
    Items,
    Paragraph,
    inferred,
    number,
)
from mdistiller.runs.language import SPEC, TEACHER, Row, Score, teachers, unanswered
from mdistiller.runs.paper import Table

WORDS = (
    "Rouge-L in percent (F-measure, Porter stemmer, best over references), answers sampled at temperature 1 with no "
    "6-gram twice, of the epoch that is best on the dev set. Here: mean over training seeds of means over five "
    "decoding seeds and all examples, ± the deviation over training seeds / over decoding seeds; the paper's would be "
    "of decoding alone. The copy row repeats the input (the instruction where there is none): what Rouge-L gives for "
    "no work."
)
CSV_FIELDS = ("table", "row", "column", "status", "seeds", "mean", "training_std", "decoding_std", "paper", "baseline",
              "gain", "config", "overrides", "command")
SMOKE_WORDS = "**A smoke run**: made-up words, tiny models. The numbers have no meaning."


def language_blocks(table: Table, rows: Sequence[Row], command: str, smoke: bool = False) -> list[Block]:
    """The results beside the paper's numbers, the controls, and the commands that fill missing rows."""
    columns = _columns(table, smoke)
    blocks: list[Block] = [Heading(f"Table {table.name}: {table.title}", 2)]
    blocks += [Paragraph(SMOKE_WORDS)] if smoke else [Paragraph(WORDS), *inferred(table)]
    lines = [] if smoke else [_fixed("copied input", SPEC["copy"], columns), *_untrained(table, rows, columns)]
    named = [row for row in rows if row.printed or smoke and row.label in table.rows]
    controls = [row for row in rows if row not in named]
    header = ("", "seeds", *columns)
    lines += [line for row in named for line in _lines(row, columns)]
    blocks.append(Grid(header, tuple(lines), f"{table.title}: Rouge-L"))
    blocks.append(Heading("Controls: is it the weighting, or the larger loss?", 3))
    blocks.append(Grid(header, tuple(line for row in controls for line in _lines(row, columns)), "Controls"))
    gains = [text for row in rows for text in _gains(row, {one.label: one for one in rows}, columns)]
    blocks += [Heading("Gain over the baseline, of the means", 3), Items(tuple(gains))] if gains else []
    if left_out := [line for row in rows for line in row.left_out]:
        blocks += [Heading("Answers of another protocol, which are in no cell", 3), Items(tuple(left_out))]
    return blocks + _missing(table, rows, command, smoke)


def language_csv(tables: Sequence[tuple[Table, Sequence[Row], str]], smoke: bool = False) -> str:
    """CSV with one line per cell; `tables` are (table, its rows, the command that fills it)."""
    return csv_lines(CSV_FIELDS, [line for table, rows, command in tables
                                  for line in _csv_rows(table, rows, command, _columns(table, smoke))])


def _csv_rows(table, rows, command, columns):
    by_label = {row.label: row for row in rows}
    for label, printed in _teacher_rows(table):
        for scores in teachers(rows) or [{}]:
            yield from (_csv_row(table, label, column, scores.get(column), printed) for column in columns)
    for row in rows:
        baseline = by_label[row.baseline].scores if row.baseline in by_label else {}
        for column in columns:
            score, other = row.scores.get(column), baseline.get(column)
            yield _csv_row(table, row.label, column, score, row.printed) | {
                "baseline": row.baseline, "gain": score.mean - other.mean if score and other else None,
                "config": row.training.config, "overrides": " ".join(row.training.all_overrides),
                "command": None if row.runs else _filling(row, command),
            }


def _csv_row(table, label, column, score, printed):
    return {"table": table.name, "row": label, "column": column, "status": "done" if score else MISSING,
            "seeds": score and score.seeds, "mean": score and score.mean, "training_std": score and score.training,
            "decoding_std": score and score.decoding, "paper": printed.get(column)}


def _columns(table, smoke):
    return [SPEC["smoke"]["column"]] if smoke else list(table.columns)


def _filling(row, command):
    return f"{command} --methods '{row.label}'"


def _fixed(label, values, columns):
    return (label, "", *(number(values.get(column)) for column in columns))


def _teacher_rows(table):
    """(label, printed numbers by column) of the rows of the paper that this project does not train: the teacher."""
    for label in table.rows:
        if label.lower().startswith("teacher"):
            yield label, {column: table.cells[label, column].printed for column in table.columns}


def _untrained(table, rows, columns):
    for label, printed in _teacher_rows(table):
        yield _fixed(f"{label}, paper", printed, columns)
        for scores in teachers(rows) or [{}]:
            yield (f"{label}, here", "", *(_text(scores.get(column)) for column in columns))


def _lines(row, columns):
    if row.printed:
        yield _fixed(f"{row.label}, paper", row.printed, columns)
    seeds = f"{len(row.runs)}" if row.runs else MISSING
    yield (f"{row.label}, here", seeds, *(_text(row.scores.get(column), len(row.runs)) for column in columns))


def _text(score: Score | None, seeds: int = 1) -> str:
    """A score of a row with this number of `seeds`; it says of how many it is, where some have not answered its set."""
    if score is None:
        return MISSING
    spreads = [NOTHING if value is None or math.isnan(value) else f"{value:.2f}"
               for value in (score.training, score.decoding)]
    fewer = f" ({counted(score.seeds, 'seed')})" if score.seeds < seeds else ""
    return f"{score.mean:.2f} ± {' / '.join(spreads)}{fewer}"


def _gains(row, by_label, columns):
    baseline = by_label.get(row.baseline)
    if baseline is None:
        return
    both = [column for column in columns if column in row.scores and column in baseline.scores]
    if both:
        texts = []
        for column in both:
            there = column in row.printed and column in baseline.printed
            paper = f" (paper {row.printed[column] - baseline.printed[column]:+.2f})" if there else ""
            texts.append(f"{column} {row.scores[column].mean - baseline.scores[column].mean:+.2f}{paper}")
        yield f"{row.label} over {row.baseline}: {', '.join(texts)}"


def _missing(table, rows, command, smoke):
    wanted = 1 if smoke else SPEC["seeds"]
    fewer = [row for row in rows if len(row.runs) < wanted]
    blocks: list[Block] = []
    if fewer:
        lines = [_filling(row, command) for row in fewer]
        have = "have no run" if wanted == 1 else f"have fewer than {wanted} seeds"
        blocks += [Heading(f"Missing: {len(fewer)} of {len(rows)} rows {have}", 3),
                   Paragraph(f"All of them: `{command}`"), Commands(tuple(lines))]
    trained = [] if smoke else [run for row in rows for run in row.runs]
    lines = [_answering(run) for run in trained if unanswered(run)]
    taught = [run for run in trained if run.metadata.get("teacher_sha256")]
    if taught and any(_teacher_rows(table)) and not teachers(rows):
        lines.append(_answering(taught[0], TEACHER))
    if lines:
        blocks += [Heading("Trained, and not scored on all sets", 3), Commands(tuple(lines))]
    return blocks


def _answering(run, who="best"):
    chosen = "" if who == "best" else f" --checkpoint {who}"
    sets = [f"{name}={file}" for name, file in unanswered(run, who).items()]
    return f"python tools/answers.py --run {shlex.quote(str(run.path))}{chosen} --sets {shlex.join(sets)}"
