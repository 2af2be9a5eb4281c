"""Draw the paper's figures from the files (CSV, NPZ, JSON) that tools/analyze.py has written."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdistiller.errors import UserError, first_line
from mdistiller.files import csv_rows, open_plain, read_plain, write_atomically
from mdistiller.libraries import import_extra
from mdistiller.registry import ea_name, split_ea
from mdistiller.report.figure_weights import token_weights

TEACHER = "Teacher"
TEXTS = ("method", "network", "device", "key", "student")  # columns that hold text instead of numbers
TEXT_OR_NUMBER = ("level",)  # of weights: "token", ...; of a loss surface: nats
# The palette of Okabe and Ito, suitable for colour-blind readers and for print in grey.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)
COLOURS, MARKERS, LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY), "osD^vP", ("-", "--", "-.", ":")
CLASS_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, YELLOW, "#999999", "#7B3F00")
COLUMN = 3.4  # inches: one column of a paper
PANELS = 3  # epochs of one method side by side: of the six that a run of the paper saves, its 40, 120 and 240
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "axes.spines.top": False, "axes.spines.right": False,
    "lines.markersize": 4, "lines.linewidth": 1.3, "legend.frameon": False, "savefig.dpi": 200, "pdf.fonttype": 42,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.5, "axes.axisbelow": True,
    "text.parse_math": False,  # names from records are only text
}


def draw(figure: str, analysis: Path, output: Path) -> list[Path]:
    """Draw a figure as PNG and PDF in the folder `output`; returns their paths.

    Raises UserError when the figure has not been measured, when its files are damaged, or when matplotlib is missing.
    """
    plt = pyplot()
    if not (analysis / f"figure_{figure}.json").is_file():
        raise UserError(f"{analysis}: figure {figure} is not measured yet; python tools/analyze.py --figure {figure} "
                        f"--runs FOLDER --output {analysis}")
    with plt.rc_context(STYLE):
        try:
            drawn = FIGURES[figure](plt, Source(analysis, figure))
        except UserError:
            raise
        except Exception as error:  # incomplete or foreign files may cause any exception
            raise UserError(f"{analysis / f'figure_{figure}'}*: not what tools/analyze.py writes "
                            f"({first_line(error)}); measure again with --again") from error
        return save(plt, drawn, output, f"figure_{figure}")


def save(plt, drawn, output: Path, name: str) -> list[Path]:
    """Write a matplotlib figure as PNG and PDF (without a date, so that equal figures are equal files); close it."""
    paths = [output / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        how = {"format": path.suffix[1:], "metadata": {"CreationDate": None} if path.suffix == ".pdf" else None}
        write_atomically(path, lambda file, how=how: drawn.savefig(file, bbox_inches="tight", **how))
    plt.close(drawn)
    return paths


def pyplot():
    """matplotlib.pyplot without a window. Raises UserError if matplotlib is missing."""
    import_extra("matplotlib", "a figure", "report").use("Agg")
    import matplotlib.pyplot as plt

    return plt


class Source:
    """Reads the files of one figure."""

    def __init__(self, folder: Path, figure: str):
        self.folder, self.figure = folder, figure
        self.metadata = json.loads(read_plain(folder / f"figure_{figure}.json"))

    @property
    def data(self) -> str:
        """The data set of the measured runs; empty if the file names none."""
        return next((run["data"] for run in self.metadata.get("runs", ())), "")

    def table(self, name: str) -> list[dict]:
        """The rows of figure_<n>_<name>.csv; all columns except `TEXTS` are numbers, and an empty field is NaN.

        Raises UserError, naming line and column, for a field that is not a number.
        """
        path = self.folder / f"figure_{self.figure}_{name}.csv"
        rows = csv_rows(path)
        return [{key: _value(key, text, f"{path}, line {number}") for key, text in row.items()}
                for number, row in enumerate(rows, start=2)]

    def arrays(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of figure_<n>_<name>.npz with keys "<network>|<epoch>|<what>".

        Returned as {"<network>|<epoch>": {what: array}}.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        with open_plain(self.folder / f"figure_{self.figure}_{name}.npz") as file:
            for key, array in np.load(file).items():
                network, epoch, *what = key.split("|")
                found.setdefault(f"{network}|{epoch}", {})[what[0] if what else "grid"] = array
        return found


def _value(column, text, place):
    if column in TEXTS and text is not None:
        return text
    try:
        return float(text) if text != "" else math.nan
    except (TypeError, ValueError):
        if column in TEXT_OR_NUMBER and text:
            return text
        raise UserError(f"{place}: {column}: expected a number, found {text!r}") from None


def _groups(rows, *keys):
    """{value of the key, or tuple of the values of several keys: rows}, in order of appearance."""
    groups = {}
    for row in rows:
        values = tuple(row[key] for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(row)
    return groups


def _column(rows, key):
    return np.array([row[key] for row in rows], float)


def _some(epochs):
    """At most PANELS items of a sequence, the first and the last included, at even distances."""
    if len(epochs) <= PANELS:
        return epochs
    return [epochs[int(place)] for place in np.linspace(0, len(epochs) - 1, PANELS)]


def curve_look(number):
    """Colour, marker and line style of curve `number`; the first six curves all look different."""
    return {"color": COLOURS[number % 6], "marker": MARKERS[number % 6], "linestyle": LINES[number % 4]}


def _curve(axes, x, rows, label, look, key="top1"):
    """A line, with its standard deviation over seeds as a band if there is one."""
    mean, deviation = _column(rows, key), _column(rows, "std")
    axes.plot(x, mean, label=label, **look)
    if not np.isnan(deviation).all():
        axes.fill_between(x, mean - deviation, mean + deviation, color=look["color"], alpha=0.2, linewidth=0)


def _seeds(rows):
    least, most = (int(choose(_column(rows, "seeds"))) for choose in (min, max))
    if most == 1:
        return "one seed"
    return f"mean and standard deviation over {most if least == most else f'{least} to {most}'} seeds"


# --- the figures -----------------------------------------------------------------------------------------------------


def speed(plt, source):
    """Figure 1: accuracy over time per batch; a line joins each EA variant to its baseline."""
    rows = source.table("speed")
    figure, axes = plt.subplots(figsize=(COLUMN * 1.4, COLUMN))
    at = {row["method"]: row for row in rows}
    baselines = list(dict.fromkeys(split_ea(name)[0] for name in at))
    for number, baseline in enumerate(baselines):
        look = {"color": CLASS_COLOURS[number % 10], "marker": MARKERS[number % 6], "linestyle": "none"}
        pair = [at[name] for name in (baseline, ea_name(baseline)) if name in at]
        axes.plot(*([row[key] for row in pair] for key in ("ms_per_batch", "top1")), color=look["color"], linewidth=0.8)
        for row in pair:
            weighted = split_ea(row["method"])[1]
            axes.errorbar(row["ms_per_batch"], row["top1"], yerr=np.nan_to_num(row["std"]), capsize=2, **look,
                          markerfacecolor=look["color"] if weighted else "white")
            axes.annotate(row["method"], (row["ms_per_batch"], row["top1"]), xytext=(5, 3 if weighted else -9),
                          textcoords="offset points", color=look["color"], fontsize=7)
    axes.margins(x=0.18, y=0.12)
    axes.set(xlabel=f"time per batch (ms) on {rows[0]['device']}", ylabel="top-1 accuracy (%)")
    axes.set_title(f"filled: with entropy weights; {_seeds(rows)}")
    return figure


def high_entropy_teacher(plt, source):
    """Figure 2: accuracy by segment of teacher entropy; t-SNE of the teacher."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(2 * COLUMN, COLUMN * 0.9), layout="constrained")
    rows = source.table("segments")
    for number, (name, part) in enumerate(_groups(rows, "network").items()):
        look = curve_look(number - 1) if number else {"color": BLACK, "marker": "x", "linestyle": "-"}
        _curve(left, _column(part, "segment"), part, name, look)
    left.set(xlabel="teacher entropy, low to high (tenths of the test images)",
             ylabel="top-1 accuracy (%)", xticks=range(1, 11))
    left.set_title(f"(a) Accuracy\n{_seeds(rows[-1:])}")
    left.legend()
    ((_, arrays),) = source.arrays("tsne").items()
    scatter(right, arrays)
    right.set_title("(b) t-SNE of the teacher\ntriangles: top 10 % in entropy")
    return figure


def scatter(axes, arrays):
    """Points of a t-SNE coloured by class; triangles mark the samples in `arrays["top"]`."""
    points, target, top = arrays["points"], arrays["target"].astype(int), arrays["top"]
    colours = np.array(CLASS_COLOURS)[target % 10]
    axes.scatter(*points[~top].T, c=colours[~top], s=5, linewidths=0, alpha=0.7)
    axes.scatter(*points[top].T, c=colours[top], s=26, marker="^", edgecolors="black", linewidths=0.6)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#999999")


def high_entropy_students(plt, source):
    """Figure B1: accuracy by segment of student entropy, and t-SNE of students over epochs."""
    rows, shown = source.table("segments"), source.arrays("tsne")
    methods = list(_groups(rows, "method"))
    epochs = {name: _some([key for key in shown if key.split("|")[0] == name]) for name in methods}
    wide = max(2, *(len(keys) for keys in epochs.values()))
    figure = plt.figure(figsize=(2 * COLUMN, COLUMN * (0.9 + 0.72 * len(methods))), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.9, 0.72 * len(methods)))
    axes = upper.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for number, (panel, method) in enumerate(zip(axes, methods, strict=True)):
        for name, part in _groups([row for row in rows if row["method"] == method], "network").items():
            look = {"color": BLACK, "marker": "x", "linestyle": "-"} if name == TEACHER else curve_look(number)
            _curve(panel, _column(part, "segment"), part, name, look)
        panel.set(xlabel=f"segment of the {method} student's entropy, low to high", xticks=range(1, 11))
        panel.legend()
    axes[0].set_ylabel("top-1 accuracy (%)")
    upper.suptitle(f"(a) Accuracy by student entropy; {_seeds(rows)}", fontsize=8)
    panels = lower.subplots(len(methods), wide, squeeze=False)
    for line, method in zip(panels, methods, strict=True):
        for place, panel in enumerate(line):
            if place >= len(epochs[method]):
                panel.axis("off")
                continue
            key = epochs[method][place]
            scatter(panel, shown[key])
            panel.set_title(f"{method}, epoch {key.split('|')[1]}")
    lower.suptitle("(b) t-SNE; triangles: top 10 % in entropy (with EA: in weight)", fontsize=8)
    return figure


def entropy_boxes(plt, source):
    """Figure 3: box plots of the entropies of student and teacher over epochs."""
    groups = _groups(source.table("boxes"), "method")
    figure, panels = plt.subplots(1, len(groups), figsize=(2 * COLUMN, COLUMN * 0.85), sharey=True, squeeze=False,
                                  layout="constrained")
    for number, (panel, (method, rows)) in enumerate(zip(panels[0], groups.items(), strict=True)):
        epochs = sorted({int(row["epoch"]) for row in rows})
        kinds = _groups(rows, "network")
        for side, name in ((-0.2, method), (0.2, TEACHER)):
            boxes = [{"whislo": row["low"], "q1": row["q1"], "med": row["median"], "q3": row["q3"],
                      "whishi": row["high"]} for row in kinds[name]]
            colour, hatch = (COLOURS[number], "") if name == method else ("#bbbbbb", "////")
            drawn = panel.bxp(boxes, positions=np.arange(len(epochs)) + side, widths=0.34, showfliers=False,
                              patch_artist=True, medianprops={"color": "black"},
                              boxprops={"facecolor": colour, "hatch": hatch, "linewidth": 0.6})
            drawn["boxes"][0].set_label(f"{name} student" if name == method else "teacher")
        panel.set_xticks(range(len(epochs)), epochs)
        panel.set(xlabel="epoch", title=method)
        panel.grid(False, axis="x")
        panel.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0][0].set_ylabel("entropy (nats)")
    samples = int(next(iter(groups.values()))[0]["samples"])
    figure.suptitle(f"Top 10 % in teacher entropy ({samples} training images); boxes: quartiles, whiskers: 5 to 95 %",
                    fontsize=8)
    return figure


def sample_losses(plt, source):
    """Figure 4: the share of each sample of a batch in the loss, before and after weighting."""
    rows = source.table("samples")
    figure, panels = plt.subplots(3, 1, figsize=(2 * COLUMN, COLUMN * 1.25), sharex=True, layout="constrained",
                                  height_ratios=(1, 1.3, 1.3))
    x, ahead = _column(rows, "sample"), panels[0]
    for name, key, look in (("teacher", "entropy_teacher", {"color": BLACK, "marker": "x"}),
                            ("student", "entropy_student", {"color": BLUE, "marker": "o", "linestyle": "--"})):
        ahead.plot(x, _column(rows, key), label=f"{name} entropy", **{"markersize": 2.5, "linewidth": 0.9, **look})
    ahead.set(ylabel="nats", ylim=(0, None))
    ahead.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    ahead.set_xlim(0, len(rows) + 1)
    highest = 1.08 * max(_column(rows, "loss_share").max(), _column(rows, "weighted_share").max())
    weighted = f"{rows[0]['method']}: weighted"
    shares = (("loss_share", "KD: every sample alike", SKY), ("weighted_share", weighted, ORANGE))
    for panel, (key, title, colour) in zip(panels[1:], shares, strict=True):
        panel.bar(x, _column(rows, key), color=colour, edgecolor="black", linewidth=0.3)
        half = _column(rows, key)[len(rows) // 2:].sum()
        panel.set(ylabel="% of the loss", ylim=(0, highest))
        panel.set_title(f"{title}; the half with higher teacher entropy holds {half:.0f} %")
    panels[-1].set_xlabel(f"sample of a batch, from low to high teacher entropy (epoch {int(rows[0]['epoch'])})")
    return figure


def loss_shares(plt, source):
    """Figure 5: share of the loss in each quartile of teacher entropy over epochs."""
    groups = _groups(source.table("shares"), "method")
    figure, panels = plt.subplots(1, len(groups), figsize=(2 * COLUMN, COLUMN * 0.85), sharey=True, squeeze=False,
                                  layout="constrained")
    looks = ((BLUE, "o", "-"), (SKY, "s", "--"), (ORANGE, "D", "-."), (VERMILION, "^", ":"))
    for panel, (method, rows) in zip(panels[0], groups.items(), strict=True):
        for quartile, part in _groups(rows, "quartile").items():
            colour, marker, line = looks[int(quartile) - 1]
            words = {1: " (low entropy)", 4: " (high)"}.get(int(quartile), "")
            look = {"color": colour, "marker": marker, "linestyle": line, "markevery": max(1, len(part) // 10)}
            _curve(panel, _column(part, "epoch"), part, f"Q{int(quartile)}{words}", look, "share")
        panel.axhline(25, color="#999999", linewidth=0.7)
        panel.set(xlabel="epoch", title=f"{method}{source.data and f' on {source.data}'}\n{_seeds(rows)}")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0][0].set_ylabel("share of the distillation loss (%)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def students(plt, source):
    """Figures 6 and B3: t-SNE of students (in B3 also of the teacher) with the Calinski-Harabasz index."""
    shown = source.arrays("tsne")
    if source.figure == "6":
        shown = {key: arrays for key, arrays in shown.items() if not key.startswith(TEACHER)}
    wide = min(4, len(shown))
    tall = math.ceil(len(shown) / wide)
    figure, panels = plt.subplots(tall, wide, figsize=(2 * COLUMN, 2.15 * COLUMN * tall / wide), squeeze=False,
                                  layout="constrained")
    for panel in panels.flat:
        panel.axis("off")
    for panel, (key, arrays) in zip(panels.flat, shown.items(), strict=False):
        panel.axis("on")
        scatter(panel, arrays)
        embedding, feats = arrays["index"]
        panel.set_title(f"{key.split('|')[0]}\nCH {embedding:.0f} (features {feats:.0f})")
    figure.suptitle("t-SNE; triangles: top 10 % in entropy (with EA: in weight); CH: Calinski-Harabasz index",
                    fontsize=8)  # of the embedded points and, in parentheses, of the features
    return figure


def surfaces(plt, source):
    """Figures 7 and B2: loss surfaces over epochs, and the difference of their low-loss area from the teacher's."""
    rows, grids = source.table("surfaces"), source.arrays("surfaces_grid")
    groups = {name: part for name, part in _groups(rows, "network").items() if name != TEACHER}
    height = 2 * COLUMN / PANELS + 0.45
    figure = plt.figure(figsize=(2 * COLUMN, height * (len(groups) + 1)), layout="constrained")
    places = figure.add_gridspec(len(groups) + 1, PANELS)
    levels = _levels([arrays["grid"] for arrays in grids.values()])
    for line, part in enumerate([*groups.values(), rows[:1]]):
        for place, row in enumerate(_some(part)):
            name, epoch = row["network"], int(row["epoch"])
            panel = figure.add_subplot(places[line, place])
            _contours(panel, grids[f"{name}|{epoch}"]["grid"], row["level"], levels)
            title = TEACHER if name == TEACHER else f"{name}, epoch {epoch}"
            numbers = f"mean {row['mean']:.2f}, variance {row['variance']:.2f}\narea@{row['level']:g} {row['area']:.2f}"
            panel.set_title(f"{title}\n{numbers}", fontsize=7)
    panel = figure.add_subplot(places[-1, 1:])
    for number, (name, part) in enumerate(groups.items()):
        panel.plot(_column(part, "epoch"), _column(part, "area_difference"), label=name, **curve_look(number))
    panel.axhline(0, color="#999999", linewidth=0.7)
    panel.set(xlabel="epoch", ylabel=f"area@{rows[0]['level']:g} of the teacher\nminus the student's")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend()
    figure.suptitle(f"Cross-entropy (nats) on {int(rows[0]['images'])} training images, weights moved along two "
                    f"directions; thick line: {rows[0]['level']:g}", fontsize=8)
    return figure


def _levels(grids):
    """Contour levels for all surfaces, evenly spaced on a logarithmic scale."""
    low = max(0.1, min(grid.min() for grid in grids))  # lower levels would show only a point
    return np.geomspace(low, 1.01 * max(low, *(grid.max() for grid in grids)), 24)


def _contours(axes, grid, level, levels):
    steps = np.linspace(-1, 1, len(grid))
    lines = axes.contour(steps, steps, grid.T, levels=levels, norm="log", cmap="cividis", linewidths=0.8)
    axes.clabel(lines, lines.levels[::3], fmt="%.3g", fontsize=5)
    if grid.min() < level < grid.max():
        axes.contour(steps, steps, grid.T, levels=[level], colors=VERMILION, linewidths=2)
    axes.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    axes.tick_params(labelsize=6)
    axes.grid(False)


def accuracy_over(plt, source):
    """Figure 8: accuracy over the values of a setting, with its variance."""
    rows = source.table("values")
    figure, axes = plt.subplots(figsize=(COLUMN * 1.2, COLUMN * 0.9))
    for number, (name, part) in enumerate(_groups(rows, "method").items()):
        variance = part[0]["variance"]
        label = name if math.isnan(variance) else f"{name} (variance {variance:.2f})"
        _curve(axes, _column(part, "value"), part, label, curve_look(number))
    axes.set(xlabel=rows[0]["key"], ylabel="top-1 accuracy (%)", title=_seeds(rows))
    axes.legend()
    return figure


FIGURES: dict[str, Callable] = {
    "1": speed, "2": high_entropy_teacher, "3": entropy_boxes, "4": sample_losses, "5": loss_shares, "6": students,
    "7": surfaces, "8": accuracy_over, "B1": high_entropy_students, "B2": surfaces, "B3": students,
    "weights": token_weights,
}
