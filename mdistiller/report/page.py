"""One self-contained HTML page about a folder of runs: tables, interactive charts, and the runs behind each number."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdistiller.errors import UserError, counted
from mdistiller.files import read_text
from mdistiller.report import render
from mdistiller.report.answers import answers_of
from mdistiller.report.book import Book, percent
from mdistiller.report.charts import chart_data
from mdistiller.report.compare import edited_words, head, repeated_words, row, teachers
from mdistiller.report.layout import layout
from mdistiller.report.pictures import detections_of, figures_in
from mdistiller.report.samples import class_gains, samples_of
from mdistiller.report.significance import GAIN_HEAD, gain_cells
from mdistiller.runs.fill import fill, may_be_filled
from mdistiller.runs.paper import covered_tables
from mdistiller.runs.progress import duration, progress
from mdistiller.runs.records import RunRecord, find_runs, metric_words, repeated_runs
from mdistiller.traces import FOLDER, by_epoch, read_trace

LONGEST_LOG = 60_000  # characters; of a longer log only the end is shown
COLUMNS = (1, -2, -1, -3, 0, 2, 3, 4)  # of the table: method and accuracies first, visible on a phone without scrolling
GAIN_WORDS = ("method", "compared with", "networks", "seeds of both", *GAIN_HEAD)


def report(root: str | Path, figures: str | Path | None = None) -> str:
    """The page of all runs in `root` with the PNG files of the folder `figures`.

    Raises UserError without any run, and when Jinja2 or Plotly is missing.
    """
    problems: list[str] = []
    runs = [run for run in find_runs(root, problems) if can_be_shown(run, problems)]
    if not runs:
        raise UserError(problems[0] if problems else f"{root}: contains no run folder")
    return render.render("report.html", **values(root, runs, figures, problems=problems))


def can_be_shown(run: RunRecord, problems: list[str]) -> bool:
    """Whether the files of a run that the page shows can be read; if not, a message is added to `problems`."""
    try:
        run.metrics(), samples_of([run]), list(answers_of([run]))
        if by_epoch(run.path / FOLDER, ".npz"):
            read_trace(run.path)
    except UserError as error:
        problems.append(str(error))
        return False
    return True


def values(root: str | Path, runs: Sequence[RunRecord], figures: str | Path | None = None, live: bool = False,
           problems: Sequence[str] = ()) -> dict[str, Any]:
    """What the template report.html shows. `live`: the page asks its server for news (tools/watch.py).

    `problems` are messages about folders that cannot be read.
    """
    book = Book(Path(root), runs)
    problems = [*problems, *repeated_words([run for run, _ in repeated_runs(runs)]),
                *edited_words(entry.runs for entry in book.entries)]
    samples = samples_of(runs)
    gained = [gain for _, _, gain in book.gains]
    return {
        "title": f"Runs below {root}", "book": book, "live": live, "problems": problems, "percent": percent,
        "progress": progress(root, runs), "duration": duration, "written": _now(), "cards": _cards(book),
        "headings": _headings(book), "results": [(entry, _cells(entry)) for entry in book.entries],
        "teachers": _teachers(book), "gain_head": GAIN_WORDS,
        "gain_rows": [(entry, baseline, gain, cells)
                      for (entry, baseline, gain), cells in zip(book.gains, gain_cells(gained), strict=True)],
        "data": {**chart_data(book), "classes": class_gains(book, samples)}, "samples": samples,
        "tables": list(_paper(book)), "answers": list(answers_of(runs)), "detections": list(detections_of(runs)),
        "figures": list(figures_in(figures)), "metadata": _metadata, "log": _log,
    }


def _now():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _cards(book):
    """(number, words) that sum up the page."""
    numbers = {"finished run": sum(run.done for run in book.runs), "configuration": len(book.entries),
               "method": len({entry.method for entry in book.entries})}
    cards = [tuple(counted(number, word).split(" ", 1)) for word, number in numbers.items()]
    if book.gains:
        above = sum(gain.mean > 0 for _, _, gain in book.gains)
        cards.append((f"{above} of {len(book.gains)}", "EA variants above their baseline"))
        sure = sum(gain.low > 0 for _, _, gain in book.gains)
        cards.append((str(sure), "of them with an interval above 0"))
    return cards


def _headings(book):
    names = head([run for entry in book.entries for run in entry.runs])
    return [names[column] for column in COLUMNS]


def _cells(entry):
    cells = list(row(list(entry.runs)))
    cells[1] = entry.label
    return [cells[column] for column in COLUMNS]


def _teachers(book):
    """(name, data, run, result) of each teacher."""
    return [(run.config["DISTILLER.TEACHER"], f"{run.config['DATASET.TYPE']} {words}".rstrip(), run,
             percent(run.teacher_result)) for run, words in teachers(book.runs)]


def _paper(book):
    """(filled table, its blocks) of the paper's tables that have at least one filled cell."""
    for table in covered_tables(["all"]):
        if not may_be_filled(table, book.runs):
            continue
        filled = fill(table, book.runs)
        if any(cell.runs for cell in filled.cells.values()):
            yield filled, layout(filled, f"python tools/sweep.py --table {table.name} LOG.PREFIX={book.root}")


def _metadata(run: RunRecord) -> dict[str, str]:
    """The rows of the table about one run."""
    summary, metadata, words = run.summary, run.metadata, metric_words(run.headline)
    measured = f"{words} on validation images" if run.on_validation else words
    versions = ", ".join(f"{name} {version}" for name, version in (metadata.get("versions") or {}).items())
    rows = {
        "folder": str(run.path),
        "status": f"{summary.get('status', 'not started')}, epoch {summary.get('epoch', 0)} of "
                  f"{run.epochs}",
        measured: f"last {percent(run.result('last'))}, best {percent(run.result('best'))} "
                  f"(epoch {summary.get('best_epoch')}, chosen on {summary.get('selected_on')})",
        "command": str(metadata.get("command", "unknown")),
        "commit": str(metadata.get("commit", "unknown")),
        "machine": f"{metadata.get('device')}, {versions}",
    }
    if run.config["DISTILLER.TYPE"] != "NONE":
        rows["teacher"] = (f"{metadata.get('teacher_checkpoint')}, SHA-256 {metadata.get('teacher_sha256')}, {words} "
                           f"{percent(run.teacher_result)}")
    return rows


def _log(run: RunRecord) -> str:
    """The end of the log."""
    text = read_text(run.path / "train.log") or "no log"
    return text if len(text) <= LONGEST_LOG else f"(the last {LONGEST_LOG} characters)\n{text[-LONGEST_LOG:]}"
