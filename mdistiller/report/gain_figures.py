"""Figures of gains over the runs of studies: against the epochs, the weight of the loss, or the method. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError
from mdistiller.report.figures import COLUMN, STYLE, curve_look, pyplot, save
from mdistiller.report.study import Study, best_exact, load_studies
from mdistiller.runs.paper import DATA
from mdistiller.runs.records import RunRecord
from mdistiller.runs.statistics import Gain, paired_gain

GAIN_FIGURES: tuple[str, ...] = ("gain_epochs", "gain_weight", "gain_tuned")  # the keys of gain_figures.yaml
NUDGE = 0.03  # horizontal shift between curves, relative to the width, so that their intervals do not overlap


def gain_curves(figure: str, runs: Sequence[RunRecord]) -> dict[str, dict[Any, Gain]]:
    """The curves of a figure of gain_figures.yaml: label -> x -> gain (points of the headline metric, paired by seed).

    Points and curves without runs are left out.
    """
    spec, studies = read_yaml(DATA / "gain_figures.yaml")[figure], load_studies()
    curves = {label: {x: gain for x, (study, line, baseline) in points.items()
                      if (gain := _gain(studies[study], line, baseline, runs)) is not None}
              for label, points in spec["curves"].items()}
    return {label: points for label, points in curves.items() if points}


def draw_gains(figure: str, runs: Sequence[RunRecord], output: Path) -> list[Path]:
    """Draw a figure of gain_figures.yaml as PNG and PDF in the folder `output`; returns their paths.

    A point is a mean gain; its bar is Student's 95 % interval, and a single seed has none. Raises UserError when no
    point has runs, or when matplotlib is missing.
    """
    spec, curves = read_yaml(DATA / "gain_figures.yaml")[figure], gain_curves(figure, runs)
    if not curves:
        raise UserError(f"figure {figure}: none of its comparisons has runs; python tools/sweep.py --study NAME trains "
                        "them")
    plt = pyplot()
    with plt.rc_context(STYLE):
        return save(plt, _plot(plt, spec, curves), output, figure)


def _gain(study: Study, line: str, baseline: str, runs) -> Gain | None:
    """The gain of a line of a study over another one; None where either has no runs."""
    found = [{seed: run.result("last") for seed, run in best_exact(runs, study.lines[name]).items()}
             for name in (line, baseline)]
    return paired_gain(*found) if all(found) else None


def _plot(plt, spec, curves):
    """The places on the x axis are spread evenly: epochs and weights are chosen by factors, methods are names."""
    places = list(dict.fromkeys(x for points in curves.values() for x in points))
    named = isinstance(places[0], str)
    shared = [x for x in places if sum(x in points for points in curves.values()) > 1]
    places = (shared or places) if named else sorted(places)  # methods are there to be compared between curves
    drawn, axes = plt.subplots(figsize=(max(1.5, 0.2 * len(places)) * COLUMN, 0.85 * COLUMN))
    step = NUDGE * len(places)
    for number, (label, points) in enumerate(curves.items()):
        shift = (number - (len(curves) - 1) / 2) * step
        shown = {places.index(place) + shift: gain for place, gain in points.items() if place in places}
        x, means = list(shown), [gain.mean for gain in shown.values()]
        errors = [gain.mean - gain.low if gain.low == gain.low else 0.0 for gain in shown.values()]
        style = curve_look(number) | ({"linestyle": "none"} if named else {})
        axes.errorbar(x, means, yerr=errors, capsize=2, elinewidth=0.9, label=label, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xticks=range(len(places)), xticklabels=[str(place) for place in places], xlabel=spec["x"],
             ylabel="gain, points of top-1", title=spec["title"])
    if linear := spec.get("linear"):  # one unstable method leaves no room for the others
        axes.set_yscale("symlog", linthresh=linear, linscale=1)
        ticks = [sign * linear * 2**power for sign in (-1, 1) for power in range(8)]
        low, high = axes.get_ylim()
        axes.set(yticks=[0, *(tick for tick in ticks if low <= tick <= high)], ylim=(low, high))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylabel(f"gain, points of top-1\n(logarithmic beyond {linear})")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    return drawn
