"""One self-contained HTML page about a folder of runs: tables, curves, figures, and the runs behind each number."""

import base64
import datetime
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mdistiller.errors import UserError
from mdistiller.files import read_plain
from mdistiller.registry import split_ea
from mdistiller.report import formats
from mdistiller.report.answers import answers_section
from mdistiller.report.compare import head, row
from mdistiller.report.detections import detections_section
from mdistiller.report.layout import layout
from mdistiller.report.svg import Series, line_chart
from mdistiller.runs.differences import differences
from mdistiller.runs.fill import FilledTable, fill
from mdistiller.runs.paper import covered_tables
from mdistiller.runs.reading import finite_points
from mdistiller.runs.records import RunRecord, find_runs, group_runs, mean_and_std, metric_words

LONGEST_LOG = 60_000  # characters; of a longer log only the end is shown
LONGEST_LABEL = 48  # characters
COLUMNS = (1, -2, -1, -3, 0, 2, 3, 4)  # of the table: method and accuracies first, visible on a phone without scrolling
STYLE = formats.STYLE + (
    "body{overflow-wrap:break-word}a{color:#0057a8}h2{margin-top:2.5rem;border-bottom:2px solid #ddd}"
    "h3{margin-top:1.8rem}svg{width:100%;max-width:44rem;height:auto;display:block}svg text{font-size:13px;fill:#333}"
    "svg .grid{stroke:#ddd}.key{width:30px!important;height:10px!important;display:inline-block!important;"
    "vertical-align:middle}.legend span{margin-right:1rem;white-space:nowrap}figure{margin:1rem 0}"
    "img{max-width:min(100%,56rem);height:auto}pre{font-size:12px;max-height:24rem;overflow:auto}summary{cursor:pointer}"
    ".note{color:#555}code{overflow-wrap:anywhere}td a{text-decoration-thickness:1px}"
    ".metadata td{white-space:normal;min-width:14rem}"
    "@media (max-width:40rem){body{margin:1rem auto;padding:0 .7rem}th,td{padding:.25rem .45rem;font-size:14px}"
    "svg text{font-size:21px}}"
)


def report(root: str | Path, figures: str | Path | None = None) -> str:
    """The page of all runs in `root` with the PNG files of the folder `figures`. Raises UserError without any run."""
    runs = find_runs(root)
    if not runs:
        raise UserError(f"{root}: contains no run folder")
    page = Page(Path(root), runs)
    sections = [page.head(), page.summary(), page.paper(), page.curves(), answers_section(runs, page.link),
                detections_section(runs, page.link),
                _figures(figures), page.provenance()]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Runs below {escape(str(root))}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(section for section in sections if section)}\n</body></html>\n"
    )


class Page:
    """The sections of a page. Runs and configurations have anchors such as `run-3` and `group-2`."""

    def __init__(self, root: Path, runs: Sequence[RunRecord]):
        self.root, self.runs = root, runs
        self.number = {run.path: place for place, run in enumerate(runs, start=1)}
        self.groups = sorted(group_runs(run for run in runs if run.done), key=_order)
        self.labels = _labels(self.groups)
        self.legends = [_legend(label, place) for place, label in enumerate(self.labels, start=1)]
        self.metrics = {run.path: run.metrics() for run in runs}

    def head(self) -> str:
        done = sum(run.done for run in self.runs)
        left = f" {len(self.runs) - done} more are not finished and in no table." if done < len(self.runs) else ""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        return (
            f"<h1>Runs below {escape(str(self.root))}</h1>\n<p>{done} finished runs of {len(self.groups)} "
            f"configurations.{left} Written {now} from the run folders. Each number links to its runs; config, "
            "command, commit and log of each run are at the end of this page. Results are those of the headline metric "
            "on the test set (top-1, AP or Rouge-L, in percent), mean ± standard deviation over seeds (n - 1).</p>"
        )

    def summary(self) -> str:
        """The table of results, one line per configuration."""
        if not self.groups:
            return "<h2>Results</h2><p>No run is finished yet.</p>"
        names = head([run for group in self.groups for run in group])
        top = "".join(f"<th>{escape(names[column])}</th>" for column in COLUMNS)
        lines = []
        for place, group in enumerate(self.groups, start=1):
            cells = [escape(text) for text in row(group)]
            if self.labels[place - 1] != group[0].method and group[0].method != "NONE":
                cells[1] = escape(self.labels[place - 1])
            for column in (-3, -2, -1):  # seeds and the two accuracies
                cells[column] = f'<a href="#group-{place}">{cells[column]}</a>'
            lines.append("<tr>" + "".join(f"<td>{cells[column]}</td>" for column in COLUMNS) + "</tr>")
        table = f"<div><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
        return f'<h2 id="results">Results</h2>\n{table}\n{self._teachers()}'

    def _teachers(self):
        seen = {}
        for run in self.runs:
            if run.teacher_result is not None:
                seen.setdefault((run.config["DATASET.TYPE"], run.metadata.get("teacher_sha256")), run)
        told = [
            f"{escape(run.config['DISTILLER.TEACHER'])} on {escape(data)} "
            f'<a href="#run-{self.number[run.path]}">{run.teacher_result:.2f}</a>'
            for (data, _), run in seen.items()
        ]
        return f"<p>Teachers: {', '.join(told)}.</p>" if told else ""

    def paper(self) -> str:
        """The paper's tables that have at least one filled cell, with links to the runs."""
        parts = []
        for table in covered_tables(["all"]):
            filled = fill(table, self.runs)
            if any(cell.runs for cell in filled.cells.values()):
                command = f"python tools/sweep.py --table {table.name} LOG.PREFIX={self.root}"
                parts += [formats.html_fragment(layout(filled, command)), self._links(filled)]
        return "\n".join(parts)

    def _links(self, filled: FilledTable):
        lines = []
        for cell in filled.cells.values():
            if cell.runs:
                links = ", ".join(self.link(run) for run in cell.runs)
                lines.append(f"<li>{escape(cell.cell.row)}, {escape(cell.cell.column)}: {links}</li>")
        return f"<p>The runs behind the numbers of this table:</p><ul>{''.join(lines)}</ul>"

    def link(self, run: RunRecord, words: str | None = None) -> str:
        """A link to the section of a run."""
        return f'<a href="#run-{self.number[run.path]}">{escape(words or f"seed {run.seed}")}</a>'

    def curves(self) -> str:
        """Test results, sample weights and student entropy over epochs, means over seeds."""
        parts = ['<h2 id="curves">Curves</h2>']
        pairs: dict[tuple, list[int]] = {}
        for place, group in enumerate(self.groups):
            config, metric = group[0].config, group[0].headline
            pairs.setdefault((config["DATASET.TYPE"], config["DISTILLER.STUDENT"], metric), []).append(place)
        for (data, student, metric), places in pairs.items():
            deviation = "the band is their standard deviation"
            shown = (([f"test_{metric}"], "Accuracy", f"{metric_words(metric)} on the test set (%)", deviation),
                     (["weight_mean", "weight_std"], "Sample weights", "mean weight (nats)",
                      "the band is the standard deviation of the weights within a batch"),
                     (["entropy_student"], "Student entropy", "mean entropy of the student (nats)", deviation))
            for keys, title, axis, note in shown:
                series = [one for place in places if (one := self._series(place, *keys)) is not None]
                if series:
                    title = f"{title}: {escape(student)} on {escape(data)}"
                    parts.append(f"<h3>{title}</h3>\n{line_chart(series, 'epoch', axis)}")
                    parts.append(f'<p class="note">Means over seeds; {note}.</p>')
        return "\n".join(parts) if len(parts) > 1 else ""

    def _series(self, place, *keys):
        """The mean over seeds of the first key in each epoch.

        The band is the mean of the second key if there is one, otherwise the standard deviation over seeds.
        """
        at: dict[int, list[tuple[float, ...]]] = {}
        for run in self.groups[place]:
            for epoch, values in finite_points(self.metrics[run.path], *keys):
                at.setdefault(epoch, []).append(values)
        epochs, means, bands = sorted(at), [], []
        for epoch in epochs:
            finite = [[value for value in column if not math.isnan(value)] for column in zip(*at[epoch], strict=True)]
            (mean, deviation), *spread = (mean_and_std(column) if column else (math.nan, math.nan) for column in finite)
            means.append(mean)
            bands.append(spread[0][0] if spread else deviation)
        return Series(self.legends[place], epochs, means, bands) if not all(map(math.isnan, means)) else None

    def provenance(self) -> str:
        """The results of each seed by configuration, then every run with config, command, commit and log."""
        parts = ['<h2 id="configurations">Configurations</h2>']
        for place, group in enumerate(self.groups, start=1):
            config = group[0].config
            networks = escape(f"{config['DISTILLER.TEACHER']} to {config['DISTILLER.STUDENT']}")
            networks = escape(config["DISTILLER.STUDENT"]) if config["DISTILLER.TYPE"] == "NONE" else networks
            lines = "".join(
                f"<tr><td>{self.link(run)}</td>" + "".join(
                    f"<td>{self.link(run, number)}</td>" for number in
                    (_percent(run.result("last")), _percent(run.result("best")))
                ) + f"<td>{escape(str(run.summary.get('best_epoch', '')))}</td></tr>" for run in group
            )
            metric = escape(metric_words(group[0].headline))
            head = "".join(f"<th>{word}</th>" for word in
                           ("run", f"{metric}, last epoch", f"{metric}, best epoch", "best epoch"))
            parts.append(
                f'<h3 id="group-{place}">{escape(self.labels[place - 1])}: {networks} on '
                f"{escape(config['DATASET.TYPE'])}</h3>\n<div><table><thead><tr>{head}</tr></thead>"
                f"<tbody>{lines}</tbody></table></div>"
            )
        parts.append('<h2 id="runs">Runs</h2>')
        return "\n".join([*parts, *(self._run(run) for run in self.runs)])

    def _run(self, run):
        anchor = f"run-{self.number[run.path]}"
        summary, metadata, config = run.summary, run.metadata, run.config_text()
        rows = {
            "folder": f"<code>{escape(str(run.path))}</code>",
            "status": escape(f"{summary.get('status', 'not started')}, epoch {summary.get('epoch', 0)} of "
                             f"{run.config.get('SOLVER.EPOCHS')}"),
            metric_words(run.headline): escape(
                f"last {_percent(run.result('last'))}, best {_percent(run.result('best'))} "
                f"(epoch {summary.get('best_epoch')}, chosen on {summary.get('selected_on')})"),
            "command": f'<code id="{anchor}-command">{escape(str(metadata.get("command", "unknown")))}</code>',
            "commit": f'<code id="{anchor}-commit">{escape(str(metadata.get("commit", "unknown")))}</code>',
            "machine": escape(f"{metadata.get('device')}, " + ", ".join(
                f"{name} {version}" for name, version in (metadata.get("versions") or {}).items())),
        }
        if run.config["DISTILLER.TYPE"] != "NONE":
            rows["teacher"] = escape(f"{metadata.get('teacher_checkpoint')}, SHA-256 {metadata.get('teacher_sha256')}, "
                                     f"{metric_words(run.headline)} {_percent(run.teacher_result)}")
        table = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows.items())
        links = " · ".join(f'<a href="#{anchor}-{name}">{name}</a>' for name in ("config", "command", "commit", "log"))
        log = _end(_read(run.path / "train.log"))
        title = escape(f"{run.method}, {run.config['DISTILLER.STUDENT']}, seed {run.seed}")
        return (
            f'<section id="{anchor}"><h3>{title}</h3>\n<p>{links} · <a href="#results">results</a></p>\n'
            f'<div><table class="metadata">{table}</table></div>\n'
            f'<details><summary>config</summary><pre id="{anchor}-config">{escape(config)}</pre></details>\n'
            f'<details><summary>log</summary><pre id="{anchor}-log">{escape(log)}</pre></details></section>'
        )


def _labels(groups):
    """A name for each configuration: its method and, if others have the same method and networks, the differences."""
    names = ["student alone" if group[0].method == "NONE" else group[0].method for group in groups]
    words = differences(groups, [_kind(group) for group in groups])
    return [f"{name} ({words})" if words else name for name, words in zip(names, words, strict=True)]


def _legend(label, place):
    """The name in a legend; a long name is shortened and gets the number of the configuration."""
    return label if len(label) <= LONGEST_LABEL else f"{label[:LONGEST_LABEL]}... [{place}]"


def _order(group):
    """Sort key that puts each EA variant after its baseline."""
    config, method = group[0].config, group[0].method
    return config["DATASET.TYPE"], config["DISTILLER.STUDENT"], *split_ea(method)


def _kind(group):
    return tuple(group[0].config[key] for key in ("DATASET.TYPE", "DISTILLER.STUDENT")) + (group[0].method,)


def _figures(folder):
    """The PNG files of a folder, embedded in the page."""
    paths = sorted(path for path in Path(folder).glob("figure_*.png") if path.is_file()) if folder else []
    parts = []
    for path in paths:
        name, data = path.stem.removeprefix("figure_"), base64.b64encode(path.read_bytes()).decode()
        title = f"Figure {escape(name)}"
        parts.append(f'<figure id="figure-{escape(name)}"><figcaption>{title}, as in the paper</figcaption>'
                     f'<img alt="{title}" src="data:image/png;base64,{data}"></figure>')
    return "\n".join(['<h2 id="figures">Figures</h2>', *parts]) if parts else ""


def _percent(value):
    return f"{value:.2f}" if isinstance(value, int | float) and not math.isnan(value) else "–"


def _read(path):
    try:
        return read_plain(path, errors="replace")
    except OSError:
        return ""


def _end(text):
    if not text:
        return "no log"
    return text if len(text) <= LONGEST_LOG else f"(the last {LONGEST_LOG} characters)\n{text[-LONGEST_LOG:]}"
