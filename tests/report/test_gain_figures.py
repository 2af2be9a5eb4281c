"""Figures of gains: every comparison they name exists, and a drawn point is the gain of the runs."""

import pytest

from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError

pytest.importorskip("matplotlib", reason="matplotlib draws the figures (pip install -e .[report])")

from mdistiller.report import gain_figures
from mdistiller.report.study import load_studies
from mdistiller.runs.paper import DATA
from mdistiller.runs.records import find_runs
from mdistiller.runs.statistics import Gain
from tests.report.test_study import made

SPECS = read_yaml(DATA / "gain_figures.yaml")


def test_comparisons_of_figures_name_existing_lines():
    studies = load_studies()
    assert tuple(SPECS) == gain_figures.GAIN_FIGURES
    for spec in SPECS.values():
        for points in spec["curves"].values():
            assert all({line, baseline} <= studies[study].lines.keys() for study, line, baseline in points.values())


def test_a_point_is_the_mean_gain_with_its_interval_and_what_has_no_runs_is_left_out(tmp_path):
    lines = load_studies()["small"].lines
    for name, results in (("KD", (20.0, 22.0, 24.0)), ("EA-KD", (21.0, 24.0, 27.0)), ("KD, long", (23.0,)),
                          ("EA-KD, long", (25.5,))):
        for seed, last in enumerate(results):
            made(tmp_path, lines[name], seed, last)
    runs = find_runs(tmp_path)
    points = gain_figures.gain_curves("gain_epochs", runs)["EA-KD over KD"]
    assert [(epochs, gain.mean, gain.seeds) for epochs, gain in points.items()] == [(15, 2.0, 3), (45, 2.5, 1)]
    assert points[15].high == pytest.approx(4.484, abs=1e-3)  # differences 1, 2, 3: 2 + 4.303 / sqrt(3)
    paths = gain_figures.draw_gains("gain_epochs", runs, tmp_path)
    assert [path.name for path in paths if path.is_file()] == ["gain_epochs.png", "gain_epochs.pdf"]


@pytest.fixture
def drawn():
    """drawn(curves): [(x, y, ends of the bar) of each point] of each curve by label, and the labels of the x axis."""
    plt = gain_figures.pyplot()

    def points(curves):
        axes = gain_figures._plot(plt, SPECS["gain_epochs"], curves).axes[0]
        found = {}
        for container in axes.containers:
            (line, _, (bars,)) = container.lines
            ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
            found[container.get_label()] = [(*place, end) for place, end in zip(line.get_xydata(), ends, strict=True)]
        return found, [label.get_text() for label in axes.get_xticklabels()]

    yield points
    plt.close("all")


def test_points_stand_in_the_order_of_their_epochs_with_students_interval(drawn):
    points, labels = drawn({"one": {45: Gain(2.0, 3, 0.5, 3.5), 15: Gain(1.0, 1)}, "other": {15: Gain(3.0, 2, 2, 4)}})
    assert labels == ["15", "45"]  # at 0 and 1, with 0.03 of their number between the curves; one seed has no interval
    assert points == {"one": [(pytest.approx(0.97), 2, [0.5, 3.5]), (pytest.approx(-0.03), 1, [1, 1])],
                      "other": [(pytest.approx(0.03), 3, [2, 4])]}


def test_only_methods_that_can_be_compared_between_curves_are_shown(drawn):
    gain = Gain(1.0, 1)
    points, labels = drawn({"one": {"KD": gain, "DKD": gain, "MLD": gain}, "other": {"MLD": gain, "KD": gain}})
    assert labels == ["KD", "MLD"] and [len(curve) for curve in points.values()] == [2, 2]
    assert drawn({"one": {"KD": gain, "DKD": gain}})[1] == ["KD", "DKD"]


def test_a_figure_without_runs_is_reported_in_one_line():
    with pytest.raises(UserError, match="figure gain_epochs: none of its comparisons has runs"):
        gain_figures.draw_gains("gain_epochs", [], DATA)
