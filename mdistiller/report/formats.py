"""Print blocks as Markdown, LaTeX or HTML, and filled tables as CSV."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mdistiller import files
from mdistiller.markdown import prose, table
from mdistiller.report.layout import Block, Commands, Grid, Heading, Items, Paragraph, Strong, fill_command, plain
from mdistiller.report.render import render
from mdistiller.runs.fill import FilledTable

FORMATS = ("markdown", "latex", "csv", "html")


def markdown(blocks: Sequence[Block]) -> str:
    """Markdown with aligned columns, which is also readable as plain text."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Paragraph(text):
                parts.append(_wrap(text))
            case Items(lines):
                parts.append("\n".join(_wrap(line, "- ", "  ") for line in lines))
            case Commands(lines):
                parts.append("\n".join(f"    {line}" for line in lines))
            case Grid():
                parts.append(_markdown_grid(block))
    return "\n\n".join(parts) + "\n"


def _wrap(text, first="", rest=""):
    return textwrap.fill(
        prose(text), 110, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _markdown_grid(grid):
    rows = [[f"**{cell}**" if isinstance(cell, Strong) else cell for cell in row] for row in (grid.header, *grid.rows)]
    return table(rows[0], rows[1:], aligned=True)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\^{}", "±": r"$\pm$", "–": "--", "<": "$<$", ">": "$>$",
}


def _tex(text):
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _comment(text):
    """A LaTeX comment of one line; a line break in a name must not end the comment."""
    return f"% {' '.join(text.split())}"


def latex(blocks: Sequence[Block]) -> str:
    """A LaTeX table for each grid, and all other blocks as comments; needs only \\usepackage{booktabs}."""
    parts = []
    for block in blocks:
        match block:
            case Grid():
                parts.append(_latex_grid(block))
            case Heading(text):
                parts.append(_comment(text))
            case Paragraph(text):
                parts.append(_comment(plain(text)))
            case Items(lines) | Commands(lines):
                parts.append("\n".join(map(_comment, lines)))
    return "\n\n".join(parts) + "\n"


def _latex_grid(grid):
    def line(cells):
        return " & ".join(rf"\textbf{{{_tex(cell)}}}" if isinstance(cell, Strong) else _tex(cell) for cell in cells)

    columns = "l" + "c" * (len(grid.header) - 1)
    body = [rf"{line(row)} \\" for row in grid.rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.caption)}}}", rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule", rf"{line(grid.header)} \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])


def html_page(blocks: Sequence[Block], title: str) -> str:
    """A complete HTML page without external files. Raises UserError if Jinja2 is missing."""
    return render("tables.html", title=title, blocks=blocks)


CSV_FIELDS = (
    "table", "row", "column", "status", "seeds", "last_mean", "last_std", "best_mean", "best_std", "headline", "paper",
    "paper_std", "difference", "within_2sd", "baseline", "gain", "gain_seeds", "gain_low", "gain_high", "gain_p",
    "gain_p_holm", "gain_across_protocols", "paper_gain", "epochs", "views", "train_fraction", "val_fraction",
    "batch_size", "not_as_in_paper", "config", "overrides", "command",
)


def csv_text(tables: Sequence[tuple[FilledTable, str]]) -> str:
    """CSV with one line per cell; `tables` are (table, the command that fills it). Unknown values are empty."""
    return csv_lines(CSV_FIELDS, [_csv_row(filled, cell, command) for filled, command in tables
                                  for cell in filled.cells.values()])


def csv_lines(fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV of rows by field; None, NaN and fields that a row lacks are empty."""
    return files.csv_text(fields, ({key: _csv_value(value) for key, value in row.items()} for row in rows))


def _csv_row(filled, cell, command):
    protocol, gain, baseline = dict(cell.protocol), filled.gain(cell), cell.cell.baseline
    (last, last_std), (best, best_std) = cell.mean_and_std("last"), cell.mean_and_std("best")
    within = cell.within(filled.epoch)
    return {
        "table": filled.table.name, "row": cell.cell.row, "column": cell.cell.column,
        "status": "done" if cell.runs else "missing", "seeds": " ".join(str(run.seed) for run in cell.runs),
        "last_mean": last, "last_std": last_std, "best_mean": best, "best_std": best_std, "headline": filled.epoch,
        "paper": cell.cell.printed, "paper_std": cell.cell.std, "difference": cell.difference(filled.epoch),
        "within_2sd": None if within is None else str(within).lower(),
        "baseline": " / ".join(baseline) if baseline else None,
        "gain": gain and gain.mean, "gain_seeds": gain and gain.seeds, "gain_low": gain and gain.low,
        "gain_high": gain and gain.high, "gain_p": gain and gain.p,
        "gain_p_holm": filled.corrected_p.get((cell.cell.row, cell.cell.column)),
        "gain_across_protocols": str(filled.across(cell)).lower() if gain else None,
        "paper_gain": filled.printed_gain(cell), "epochs": protocol["SOLVER.EPOCHS"], "views": protocol["views"],
        "train_fraction": protocol["DATASET.TRAIN_FRACTION"], "val_fraction": protocol["DATASET.VAL_FRACTION"],
        "batch_size": protocol["SOLVER.BATCH_SIZE"], "not_as_in_paper": "; ".join(cell.differences),
        "config": cell.training.config, "overrides": " ".join(cell.training.all_overrides),
        "command": None if cell.runs else fill_command(cell, command),
    }


def _csv_value(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
