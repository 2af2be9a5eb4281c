"""Figures of gains: every comparison they name exists, and a drawn point is the gain of the runs."""

import pytest

from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError

pytest.importorskip("matplotlib", reason="matplotlib draws the figures (pip install -e .[report])")

from mdistiller.report import gain_figures
from mdistiller.report.study import load_studies
from mdistiller.runs.paper import DATA
from mdistiller.runs.records import find_runs
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


def test_a_figure_without_runs_is_reported_in_one_line():
    with pytest.raises(UserError, match="figure gain_epochs: none of its comparisons has runs"):
        gain_figures.draw_gains("gain_epochs", [], DATA)
