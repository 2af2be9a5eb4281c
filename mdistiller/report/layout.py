"""Lay out a filled table as blocks: headings, paragraphs, grids of text and commands (printed by `formats`)."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from string import ascii_lowercase

from mdistiller.errors import counted
from mdistiller.report.compare import edited_words, repeated_words
from mdistiller.runs.fill import Filled, FilledTable
from mdistiller.runs.paper import Table
from mdistiller.runs.statistics import Gain

MISSING, NOTHING = "missing", "–"
WIDEST = 4  # columns of an overview side by side
ACROSS = "\\* across protocols, as in the paper: the variant and its baseline were trained with different protocols."
VERDICTS = {True: "within", False: "outside", None: "undecided"}
OTHER_PROTOCOL = "of another protocol"


class Strong(str):
    """Text that is printed in bold: the highest mean of its pair and protocol."""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the highest."""

    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list, one text per item."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """Commands to copy, one per line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column holds labels."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def plain(text: str) -> str:
    """The text of a paragraph without Markdown markup."""
    return re.sub(r"\*\*|`", "", text).replace("\\*", "*")


Block = Heading | Paragraph | Items | Commands | Grid


def layout(filled: FilledTable, command: str, check: bool = False, widest: int = WIDEST) -> list[Block]:
    """The blocks of a table: overview, average gains, details of each pair, notes, and commands for missing cells.

    `command` is the common part of the commands that fill cells, such as "python tools/sweep.py --table 2".
    """
    marks = _marks(filled)
    blocks = [Heading(f"Table {filled.table.name}: {filled.table.title}", 2), *_introduction(filled, marks)]
    blocks += overview(filled, marks, widest)
    blocks += _average_gains(filled)
    blocks += [Items(tuple(f"({mark}) {text}" for text, mark in marks.items() if mark))] if any(marks.values()) else []
    for group in filled.groups:
        blocks += _details(filled, group, marks)
    blocks += _checked(filled) if check else []
    blocks += _notes(filled)
    return blocks + missing(filled, command)


def overview(filled: FilledTable, marks: dict[str, str], widest: int) -> list[Grid]:
    """The headline results in the paper's layout, at most `widest` columns side by side."""
    columns, grids = list(filled.table.columns), []
    for start in range(0, len(columns), widest):
        part = columns[start:start + widest]
        rows = []
        for row in filled.table.rows:
            cells = [filled.cells[row, column] for column in part]
            rows.append((row, *(_headline(filled, cell, marks) for cell in cells)))
        caption = f"{filled.table.title}: {_measure(filled)}, {filled.epoch} epoch"
        grids.append(Grid(("", *part), tuple(rows), caption))
    return grids


def missing(filled: FilledTable, command: str) -> list[Block]:
    """The commands that fill cells without runs, and cells with fewer seeds than the table needs."""
    wanted = filled.table.runs or 1
    empty = [cell for cell in filled.cells.values() if not cell.runs]
    fewer = [cell for cell in filled.cells.values() if 0 < len(cell.runs) < wanted]
    blocks = []
    if empty:
        total = len(filled.cells)
        blocks.append(Heading(f"Missing: {len(empty)} of {total} cells", 3))
        if len(empty) > 1:
            blocks += [Paragraph("The command that fills all of them:"), Commands((command,))]
        blocks += [Paragraph("The commands that fill them one by one:"), Commands(_commands(empty, command))]
    if fewer and not filled.smoke:
        blocks += [Heading(f"Fewer than {wanted} seeds: {counted(len(fewer), 'cell')}", 3)]
        blocks.append(Commands(_commands(fewer, command)))
    return blocks


def _commands(cells, command):
    """One command for each training; several metrics of one run are several cells."""
    first: dict[tuple, Filled] = {}
    for cell in cells:
        first.setdefault((cell.training.config, cell.training.overrides), cell)
    return tuple(fill_command(cell, command) for cell in first.values())


def fill_command(filled: Filled, command: str) -> str:
    """The command that trains the missing runs of one cell with the table's number of seeds."""
    cell, pair = filled.cell, filled.training.pair
    method, other = (cell.column, cell.row) if pair == cell.row else (cell.row, cell.column)
    return f"{command} --methods {shlex.quote(method)} --pairs {shlex.quote(other)}"


def number(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None or math.isnan(value) else format(value, form)


def plus_minus(mean: float, deviation: float | None) -> str:
    """The text "72.31 ± 0.25"; "72.31" without a deviation, a dash without a mean."""
    deviation = math.nan if deviation is None else deviation
    return number(mean) if math.isnan(mean) or math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def gain_text(gain: Gain | None, runs: int, corrected: float = math.nan) -> str:
    """The text "+0.80 [0.31, 1.29] p=0.012", or only the gain if there is no test.

    If not all `runs` of the cell have a partner with the same seed, the number of common seeds is added. `corrected` is
    the p-value after the correction for the number of tests in the table, written behind the raw one.
    """
    if gain is None:
        return ""
    text = f"{gain.mean:+.2f}"
    if not math.isnan(gain.p):
        text += f" [{gain.low:.2f}, {gain.high:.2f}] p{_equals(gain.p)}"
        text += "" if math.isnan(corrected) else f" (Holm{_equals(corrected)})"
    if not gain.seeds:
        return f"{text} (no common seed)"
    return text if gain.seeds == runs else f"{text} ({gain.seeds} seed{'s' if gain.seeds > 1 else ''})"


def _equals(p):
    return "<0.001" if p < 0.001 else f"={p:.3f}"


def _measure(filled):
    return f"{filled.table.metric} in percent"


def _introduction(filled, marks):
    chosen = sorted({run.summary.get("selected_on", "test") for cell in filled.cells.values() for run in cell.runs})
    chosen_on = {"test": "the test images", "val": "validation images"}
    where = " and ".join(chosen_on.get(name, name) for name in chosen) or "the test images"
    text = (
        f"Headline: **{filled.epoch} epoch**. {_measure(filled).capitalize()} on the test images, mean ± standard "
        f"deviation (n - 1) over seeds; the best epoch is chosen on {where}. Bold: the highest mean of a pair among "
        "cells of one protocol. Below, for the headline: diff., mean minus the paper's number; gain, over the baseline "
        "method on the same seeds, with Student's paired interval and test; Holm, its p-value corrected for the "
        "number of tests in the table; paper's gain, the difference of its printed numbers."
    )
    protocol = next((text for text, mark in marks.items() if not mark), None)
    blocks = [Paragraph(text)]
    if filled.smoke:
        blocks.append(Paragraph("**A smoke run**: few images and small networks. The numbers have no meaning."))
    if any(math.isnan(cell.cell.printed) for cell in filled.cells.values()):
        words = "Rows without a number of the paper are controls: is it the weighting, or the larger loss?"
        blocks.append(Paragraph(words))
    blocks += inferred(filled.table)
    return blocks + ([Paragraph(f"Protocol, unless marked: {protocol}.")] if protocol else [])


def inferred(table: Table) -> list[Paragraph]:
    """What nobody published about the trainings of a table; empty where all is known."""
    words = f"Inferred, because neither the paper nor public code says it: {table.inferred}."
    return [Paragraph(f"{words} Comments in the config files name the sources.")] if table.inferred else []


def _marks(filled):
    """Text of a protocol -> its letter; "" for the most frequent protocol of the paper."""
    texts = Counter(_protocol_text(cell) for cell in filled.cells.values())
    papers = {_protocol_text(cell) for cell in filled.cells.values() if not cell.differences or filled.smoke}
    main = next((text for text, _ in texts.most_common() if text in papers), None)
    others = [text for text in texts if text != main]
    return ({main: ""} if main else {}) | {text: _letter(index) for index, text in enumerate(others)}


def _letter(index):
    high, low = divmod(index, len(ascii_lowercase))
    return (ascii_lowercase[high - 1] if high else "") + ascii_lowercase[low]


def _protocol_text(cell):
    differences = f"; not the paper's: {', '.join(cell.differences)}" if cell.differences else ""
    return cell.protocol_text + differences


def _marked(text, cell, marks):
    mark = marks[_protocol_text(cell)]
    return f"{text} ({mark})" if mark else text


def _headline(filled, cell, marks):
    if not cell.runs:
        return MISSING
    text = _marked(plus_minus(*cell.mean_and_std(filled.epoch)), cell, marks)
    return Strong(text) if (cell.cell.row, cell.cell.column) in filled.ranked_first else text


def _average_gains(filled):
    rows, crossing = [], False
    for line, gain in filled.average_gains().items():
        printed = number(gain.printed, "+.2f")
        if gain.printed is not None and round(gain.recomputed, 2) != gain.printed:
            printed += f" (its cells give {gain.recomputed:+.2f})"
        here = number(gain.mean, "+.2f") + (" *" if gain.across else "")
        crossing |= gain.across
        rows.append((line, here, f"{gain.cells} of {gain.of}", printed))
    if not rows:
        return []
    header = ("average gain over the baseline", "here", "cells", "paper")
    grid = Grid(header, tuple(rows), f"{filled.table.title}: average gains, {filled.epoch} epoch")
    return [grid, Paragraph(ACROSS)] if crossing else [grid]


def _details(filled, group, marks):
    rows, crossing = [], False
    for line, cell in filled.groups[group].items():
        corrected = filled.corrected_p.get((cell.cell.row, cell.cell.column), math.nan)
        gain, crosses = gain_text(filled.gain(cell), len(cell.runs), corrected), filled.across(cell)
        crossing |= bool(gain) and crosses
        rows.append((
            _marked(line, cell, marks),
            str(len(cell.runs)),
            plus_minus(*cell.mean_and_std("last")) if cell.runs else MISSING,
            plus_minus(*cell.mean_and_std("best")) if cell.runs else "",
            plus_minus(cell.cell.printed, cell.cell.std),
            number(cell.difference(filled.epoch), "+.2f") if cell.runs else "",
            gain + (" *" if gain and crosses else ""),
            number(filled.printed_gain(cell), "+.2f").replace(NOTHING, ""),
        ))
    title = _title(filled, group)
    header = ("", "runs", "last", "best", "paper", "diff.", "gain [95 % interval]", "paper's gain")
    blocks = [Heading(title, 3), Grid(header, tuple(rows), f"{title}, {filled.epoch} epoch")]
    if crossing:
        blocks.append(Paragraph(ACROSS))
    return blocks


def _title(filled, group):
    said = (filled.table.columns if filled.by_columns else filled.table.rows)[group]
    cells = filled.groups[group].values()
    measured = {
        round(run.teacher_result, 2) for cell in cells for run in cell.runs if run.teacher_result
    }
    here = f"; here {', '.join(map(str, sorted(measured)))}" if measured else ""
    parts = [
        f"{role} {said.get(role, '')} ({said[f'{role}_acc']:.2f} in the paper{here if role == 'teacher' else ''})"
        for role in ("teacher", "student") if f"{role}_acc" in said
    ]
    return ": ".join([group, ", ".join(parts).replace("  ", " ")]) if parts else group


def _checked(filled):
    rows, counted = [], Counter()
    for (row, column), cell in filled.cells.items():
        if not cell.runs or math.isnan(cell.cell.printed):
            continue
        verdict = OTHER_PROTOCOL if cell.differences else VERDICTS[cell.within(filled.epoch)]
        counted[verdict] += 1
        if cell.differences:
            continue
        rows.append((
            row, column, number(cell.mean_and_std(filled.epoch)[0]), number(cell.cell.printed),
            number(cell.difference(filled.epoch), "+.2f"), number(2 * cell.deviation(filled.epoch)), verdict,
        ))
    order = (*VERDICTS.values(), OTHER_PROTOCOL)
    said = ", ".join(f"{counted[verdict]} {verdict}" for verdict in order if counted[verdict]) or "nothing to check"
    absent = sum(not cell.runs for cell in filled.cells.values())
    text = (
        f"{said[0].upper()}{said[1:]}; {absent} missing. Two standard deviations are those of the runs over seeds, or "
        "of the paper's where there is one seed."
    )
    header = ("", "", "here", "paper", "diff.", "2 sd", "verdict")
    title = f"Check: does the paper's number lie within two standard deviations ({filled.epoch} epoch)?"
    grid = [Grid(header, tuple(rows), title)] if rows else []
    return [Heading(title, 3), *grid, Paragraph(text)]


def _notes(filled) -> Iterable[Block]:
    lines = [f"{row}, {column}: {cell.cell.note}" for (row, column), cell in filled.cells.items() if cell.cell.note]
    for (row, column), cell in filled.cells.items():
        if cell.others:
            lines.append(
                f"{row}, {column}: this cell also fits {counted(cell.others, 'other configuration')} (another "
                f"teacher or protocol); the most similar to the paper's with the most seeds is shown "
                f"({cell.runs[0].path}, ...)"
            )
    unlike: dict[tuple, list[str]] = {}
    for group, cells in filled.groups.items():
        for line, cell in cells.items():
            if settings := filled.unlike_baseline(cell):
                unlike.setdefault((line, settings), []).append(group)
    lines += [f"{line}, {', '.join(groups)}: the gain is not of the weights alone: {', '.join(settings)}"
              for (line, settings), groups in unlike.items()]
    if filled.unfinished:
        lines.append(f"not finished and left out: {counted(filled.unfinished, 'run')} in the folder")
    lines += [*repeated_words(filled.repeated), *edited_words(cell.runs for cell in filled.cells.values())]
    return [Heading("Notes", 3), Items(tuple(lines))] if lines else []
