"""Figures are drawn from analysis files without torch, as PNG and PDF."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mdistiller.errors import UserError

pytest.importorskip("matplotlib", reason="matplotlib draws the figures (pip install -e .[report])")

from mdistiller.report import figures

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = ("KD", "EA-KD")
NAN = ""  # as CSV has it: a deviation of one seed


def tsne(*keys):
    draw = np.random.default_rng(0)
    arrays = {}
    for key in keys:
        top = np.zeros(30, bool)
        top[:3] = True
        values = {"points": draw.normal(size=(30, 2)), "target": np.arange(30) % 10, "top": top,
                  "index": np.array([8.0, 5.0])}
        arrays |= {f"{key}|{what}": array for what, array in values.items()}
    return arrays


def segments(*networks, method=None):
    return [{"network": name, "method": method or name, "segment": number, "top1": 90 - number, "std": 0.5, "seeds": 2}
            for name in networks for number in range(1, 11)]


SURFACES = [{"network": name, "epoch": epoch, "mean": 2.0, "variance": 1.0, "area": 0.5, "level": 1.6, "images": 9,
             "area_difference": 0.1} for name, epoch in (("Teacher", 0), ("KD", 40), ("KD", 80), ("EA-KD", 40))]
GRIDS = {f"{row['network']}|{row['epoch']}": np.add.outer(np.arange(5.0), np.arange(5.0)) for row in SURFACES}
CONTENT = {
    "1": {"speed": [{"method": name, "ms_per_batch": ms, "top1": 70, "std": NAN, "seeds": 1, "device": "cpu"}
                    for name, ms in (("KD", 10), ("EA-KD", 11), ("FITNET", 12))]},
    "2": {"segments": segments("Teacher", *METHODS), "tsne": tsne("Teacher|0")},
    "3": {"boxes": [{"method": name, "network": network, "epoch": epoch, "low": 0, "q1": 1, "median": 2, "q3": 3,
                     "high": 4, "samples": 10}
                    for name in METHODS for epoch in (1, 2) for network in (name, "Teacher")]},
    "4": {"samples": [{"sample": n, "method": "EA-KD", "epoch": 1, "entropy_teacher": n, "entropy_student": 1,
                       "loss_share": 25, "weighted_share": 10 * n} for n in (1, 2, 3, 4)]},
    "5": {"shares": [{"method": name, "epoch": epoch, "quartile": q, "share": 10 * q, "std": NAN, "seeds": 1}
                     for name in METHODS for epoch in (1, 2) for q in (1, 2, 3, 4)]},
    "6": {"tsne": tsne("KD|0", "EA-KD|0", "Teacher|0")},
    "7": {"surfaces": SURFACES, "surfaces_grid": GRIDS},
    "8": {"values": [{"method": name, "key": "DKD.BETA", "value": value, "top1": 70 + value, "std": 0.2, "seeds": 3,
                      "variance": 0.5} for name in METHODS for value in (1, 2)]},
    "B1": {"segments": segments("KD", "Teacher", method="KD"), "tsne": tsne("KD|40", "KD|80")},
    "B2": {"surfaces": SURFACES, "surfaces_grid": GRIDS},
    "B3": {"tsne": tsne("KD|0", "EA-KD|0", "DKD|0", "EA-DKD|0", "Teacher|0")},
    "weights": {
        "spread": [{"method": "EA-FKL", "student": "own", "temperature": t, "level": level, "percent": 5.0}
                   for t in (1.0, 2.0, 3.0) for level in ("token", "sequence")],
        "weights": {f"EA-FKL, own|{t}|{level}": np.linspace(1, 2, 9) for t in (1, 2, 3)
                    for level in ("token", "sequence")},
    },
}


def write(folder, name):
    for part, content in CONTENT[name].items():
        path = folder / f"figure_{name}_{part}"
        if isinstance(content, dict):
            np.savez(path.with_suffix(".npz"), **content)
        else:
            with open(path.with_suffix(".csv"), "w", newline="") as file:
                writer = csv.DictWriter(file, list(content[0]))
                writer.writeheader()
                writer.writerows(content)
    (folder / f"figure_{name}.json").write_text(json.dumps({"figure": name}))


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_a_figure_becomes_a_png_and_a_pdf(name, tmp_path):
    write(tmp_path, name)
    png, pdf = figures.draw(name, tmp_path, tmp_path / "figures")
    assert png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"


def test_names_of_records_are_no_mathematics(tmp_path, monkeypatch):
    rows = [row | {"method": f"{row['method']} $x_{{$", "device": r"$\frac$"} for row in CONTENT["1"]["speed"]]
    monkeypatch.setitem(CONTENT, "1", {"speed": rows})
    write(tmp_path, "1")
    assert len(figures.draw("1", tmp_path, tmp_path / "out")) == 2


@pytest.fixture
def drawn(tmp_path):
    """drawn(name): the matplotlib figure."""
    plt = figures.pyplot()

    def draw(name):
        write(tmp_path, name)
        return figures.FIGURES[name](plt, figures.Source(tmp_path, name))

    yield draw
    plt.close("all")


def test_a_figure_shows_the_numbers_of_the_table(drawn):
    axes = drawn("8").axes[0]
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["KD (variance 0.50)", "EA-KD (variance 0.50)"]
    assert lines[0].get_xdata().tolist() == [1, 2] and lines[0].get_ydata().tolist() == [71, 72]
    assert lines[0].get_marker() != lines[1].get_marker() and lines[0].get_color() != lines[1].get_color()
    assert axes.get_xlabel() == "DKD.BETA" and "%" in axes.get_ylabel()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((70.8, 72.2))  # one deviation of 0.2 below 71 and above 72


def test_a_method_stands_at_its_time_and_accuracy_and_is_filled_if_weighted(drawn, monkeypatch):
    rows = [row | {"top1": top1} for row, top1 in zip(CONTENT["1"]["speed"], (70, 72, 71), strict=True)]
    monkeypatch.setitem(CONTENT, "1", {"speed": rows})
    lines = drawn("1").axes[0].get_lines()
    points = [(line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_markerfacecolor() != "white")
              for line in lines if line.get_marker() in figures.MARKERS]
    assert points == [([10], [70], False), ([11], [72], True), ([12], [71], False)]
    joined = [line.get_xydata().tolist() for line in lines if len(line.get_xdata()) == 2]
    assert joined == [[[10, 70], [11, 72]]]


def test_boxes_of_student_and_teacher_have_their_quartiles(drawn, monkeypatch):
    rows = [row | {"q1": row["q1"] + (row["network"] == "Teacher") / 2} for row in CONTENT["3"]["boxes"]]
    monkeypatch.setitem(CONTENT, "3", {"boxes": rows})
    panel = drawn("3").axes[0]
    boxes = {label: patch.get_path().get_extents()
             for patch, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    assert {label: (box.y0, box.y1) for label, box in boxes.items()} == {"KD student": (1, 3), "teacher": (1.5, 3)}
    assert boxes["KD student"].x1 < 0 < boxes["teacher"].x0  # side by side at the first epoch


def test_titles_of_a_batch_name_the_share_of_its_upper_half(drawn):
    titles = [panel.get_title().rpartition("; ")[2] for panel in drawn("4").axes[1:]]
    assert titles == [f"the half with higher teacher entropy holds {share} %" for share in (50, 70)]  # 30 + 40 of 100


def test_the_line_of_a_quartile_is_its_share_over_the_epochs(drawn):
    lines = drawn("5").axes[0].get_lines()
    assert {line.get_label(): line.get_xydata().tolist() for line in lines if line.get_label()[0] == "Q"} == {
        "Q1 (low entropy)": [[1, 10], [2, 10]], "Q2": [[1, 20], [2, 20]], "Q3": [[1, 30], [2, 30]],
        "Q4 (high)": [[1, 40], [2, 40]]}


def test_students_are_shown_with_the_index_of_their_points_and_triangles_for_the_top_tenth(drawn):
    panel = drawn("6").axes[0]
    assert panel.get_title() == "KD\nCH 8 (features 5)"
    assert [len(points.get_offsets()) for points in panel.collections] == [27, 3]


def test_the_last_panel_of_the_surfaces_is_the_difference_from_the_teacher(drawn):
    axes = drawn("7").axes
    assert [panel.get_title() for panel in axes[:2]] == [
        f"KD, epoch {epoch}\nmean 2.00, variance 1.00\narea@1.6 0.50" for epoch in (40, 80)]
    line = axes[-1].get_lines()[0]
    assert (line.get_label(), line.get_xydata().tolist()) == ("KD", [[40, 0.1], [80, 0.1]])


def test_accuracies_by_a_students_entropy_are_in_the_panel_of_its_method(drawn, monkeypatch):
    monkeypatch.setitem(CONTENT, "B1", saved_every_40_epochs(METHODS)["B1"])
    for panel, method in zip(drawn("B1").axes[:2], METHODS, strict=True):
        assert [(line.get_label(), len(line.get_xdata())) for line in panel.get_lines()] == [
            (method, 10), ("Teacher", 10)]


def test_weights_are_shown_relative_to_their_mean(drawn):
    axes = drawn("weights").axes[0]
    assert [patch.get_label() for patch in axes.patches] == [
        f"T' = {number}: deviation 5.0 %" for number in (1, 2, 3)]
    heights, edges, _ = axes.patches[0].get_data()
    shown = edges[:-1][heights > 0]
    assert shown.min() == pytest.approx(2 / 3, abs=0.05) and shown.max() == pytest.approx(4 / 3, abs=0.05)  # of 1 to 2


def saved_every_40_epochs(networks):
    """Figures of a run of the paper, which saves six epochs."""
    epochs = [(name, epoch) for name in networks for epoch in range(40, 241, 40)]
    rows = [SURFACES[0]] + [{**SURFACES[1], "network": name, "epoch": epoch} for name, epoch in epochs]
    grids = {f"{row['network']}|{row['epoch']}": GRIDS["Teacher|0"] for row in rows}
    return {"7": {"surfaces": rows, "surfaces_grid": grids}, "B1": {
        "segments": [*segments("KD", "Teacher", method="KD"), *segments("EA-KD", "Teacher", method="EA-KD")],
        "tsne": tsne(*(f"{name}|{epoch}" for name, epoch in epochs))}}


@pytest.mark.parametrize(("name", "draw"), [("7", figures.surfaces), ("B1", figures.high_entropy_students)])
def test_panels_over_epochs_are_those_of_the_paper_and_their_titles_do_not_overlap(tmp_path, monkeypatch, name, draw):
    monkeypatch.setitem(CONTENT, name, saved_every_40_epochs(METHODS)[name])
    write(tmp_path, name)
    plt = figures.pyplot()
    with plt.rc_context(figures.STYLE):
        drawn = draw(plt, figures.Source(tmp_path, name))
        drawn.canvas.draw()
    titles = [axes.title for axes in drawn.axes if "epoch" in axes.get_title()]
    assert [int(title.get_text().split("\n")[0].split()[-1]) for title in titles] == [40, 120, 240] * 2
    boxes = [title.get_window_extent() for title in titles]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    plt.close(drawn)


def test_the_seven_pairs_of_the_papers_first_figure_look_different(tmp_path, monkeypatch):
    names = ("KD", "CTKD", "DKD", "MLD", "MLD+LS", "REVIEWKD", "FCFD")
    row = CONTENT["1"]["speed"][0]
    monkeypatch.setitem(CONTENT, "1", {"speed": [{**row, "method": name} for name in names]})
    write(tmp_path, "1")
    plt = figures.pyplot()
    drawn = figures.speed(plt, figures.Source(tmp_path, "1"))
    lines = [line for line in drawn.axes[0].get_lines() if line.get_marker() in figures.MARKERS]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(names)
    plt.close(drawn)


def test_the_two_panels_of_figure_5_name_their_data(tmp_path):
    write(tmp_path, "5")
    (tmp_path / "figure_5.json").write_text(json.dumps({"runs": [{"data": "tiny_imagenet"}]}))
    plt = figures.pyplot()
    drawn = figures.loss_shares(plt, figures.Source(tmp_path, "5"))
    assert drawn.axes[1].get_title() == "EA-KD on tiny_imagenet\none seed"
    plt.close(drawn)


def test_missing_measurements_and_a_missing_matplotlib_are_reported_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tools/analyze.py --figure 5"):
        figures.draw("5", tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install"):
        figures.draw("5", tmp_path, tmp_path)


@pytest.mark.parametrize(("seeds", "words"), [
    ([1, 1], "one seed"),
    ([3, 3], "mean and standard deviation over 3 seeds"),
    ([3, 2], "mean and standard deviation over 2 to 3 seeds"),
])
def test_titles_name_the_number_of_seeds(seeds, words):
    assert figures._seeds([{"seeds": number} for number in seeds]) == words
