"""The page of a folder of runs: nothing from outside, the numbers of the run folders, links that lead somewhere."""

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from mdistiller.errors import UserError
from mdistiller.report.page import report
from mdistiller.runs.statistics import paired_gain
from mdistiller.traces import FOLDER

PNG = base64.b64encode(b"\x89PNG").decode()
ACCURACY = {"KD": (70.0, 71.0), "EA-KD": (72.5, 74.5)}  # of two seeds, last epoch
WEIGHTS = [0.0, 0.5, 0.5, 1.0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """KD and EA-KD over two seeds with classes and traced weights, and one run that was interrupted."""
    root = tmp_path_factory.mktemp("runs")
    for method, values in ACCURACY.items():
        for seed, top1 in enumerate(values):
            write_run(root / f"{method}_s{seed}", method, seed, top1)
            write_samples(root / f"{method}_s{seed}", top1)
    write_run(root / "stopped", "DKD", 0, 11.11, status="interrupted")
    return root


def write_run(folder, method, seed, top1, status="done"):
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"EXPERIMENT: {{SEED: {seed}}}\nDATASET: {{TYPE: digits}}\n"
        f"DISTILLER: {{TYPE: {method}, TEACHER: resnet20, STUDENT: resnet8}}\nSOLVER: {{EPOCHS: 2}}\n"
    )
    summary = {"status": status, "epoch": 2, "last_top1": top1, "best_top1": top1 + 1, "best_epoch": 1,
               "wall_seconds": 60.0, "images_per_second": 500.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    metadata = {"command": f"tools/train.py <{method}> {seed}", "commit": f"c0ffee{seed}", "teacher_top1": 96.79,
                "teacher_sha256": "ab", "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(metadata))
    weights = {"weight_mean": 0.8, "weight_std": 0.3} if method.startswith("EA-") else {}
    lines = [json.dumps({"epoch": epoch, "test_top1": top1 - 2 + epoch, **weights}) for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epo')  # killed while it wrote
    (folder / "train.log").write_text(f"log of {method} & seed {seed}\n")
    if weights:
        (folder / FOLDER).mkdir()
        arrays = dict.fromkeys(("entropy_student", "entropy_teacher", "kd_loss", "weight"), np.array(WEIGHTS))
        np.savez(folder / FOLDER / "epoch_2.npz", **arrays)


def write_samples(folder, top1, **changed):
    image = {"index": 3, "image": PNG, "target": 1, "student": 0, "teacher": 1, "weight": 1.25, "loss": 3.5,
             "entropy_student": 1.0, "entropy_teacher": 0.5, **changed}
    content = {"classes": ["cat", "<dog>"], "count": [5, 5], "student": [top1, 50.0], "teacher": [90.0, None],
               "hardest": [image]}
    (folder / "samples.json").write_text(json.dumps(content))


class Page(HTMLParser):
    """Tables as rows of text, ids, links and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.links, self.fetched, self.images = [], [], [], [], 0
        self.in_cell, self.data, self.policy = False, "", None
        self.inside = None  # the script or style whose text is being read
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        sources = [attrs.get(key) for key in ("src", "srcset", "data", "poster", "action", "xlink:href")]
        self.fetched += [value for value in sources if value] + ([attrs["href"]] if tag == "link" else [])
        self.images += tag == "img"
        self.policy = attrs["content"] if "http-equiv" in attrs else self.policy
        self.inside = attrs.get("id", tag) if tag in ("script", "style") else None
        assert tag not in ("iframe", "object", "embed", "base") and not any(key.startswith("on") for key in attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")
        self.inside = None

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data
        if self.inside == "data":
            self.data += data
        if self.inside == "style":
            assert not re.search(r"url\(|@import", data)

    def table(self, heading):
        """The first table that has this heading."""
        return next(table for table in self.tables if heading in table[0])


@pytest.fixture(scope="module")
def page(runs):
    return Page(report(runs))


def test_nothing_is_fetched_and_every_link_leads_to_a_place_on_the_page(runs, tmp_path):
    for name in ("2", "weights"):  # the latter is not one of the paper's
        (tmp_path / f"figure_{name}.png").write_bytes(b"\x89PNG")
    text = report(runs, tmp_path)
    page = Page(text)
    assert "<figcaption>Figure 2</figcaption>" in text and "<figcaption>Figure weights</figcaption>" in text
    assert page.images == 6 and all(address.startswith("data:") for address in page.fetched)  # four samples
    assert "default-src 'none'" in page.policy and "connect-src 'none'" in page.policy
    assert len(page.ids) == len(set(page.ids))
    assert page.links and all(link[0] == "#" and link[1:] in page.ids for link in page.links)


def test_the_table_holds_the_numbers_of_the_run_folders(page):
    header, *rows = page.table("seeds")
    by_method = {row[header.index("method")]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_method) == ["KD", "EA-KD"]
    assert by_method["KD"]["top-1, last epoch"] == "70.50 ± 0.71"  # 70 and 71
    assert by_method["EA-KD"]["top-1, best epoch"] == "74.50 ± 1.41"
    assert {row["seeds"] for row in by_method.values()} == {"2"}


def test_the_gain_of_an_ea_variant_is_paired_with_its_baseline(page):
    header, row = page.table("compared with")
    gain = paired_gain(dict(enumerate(ACCURACY["EA-KD"])), dict(enumerate(ACCURACY["KD"])))
    assert gain.mean == 3.0 and row[:5] == ["EA-KD", "KD", "resnet20 → resnet8", "2", "+3.00"]
    (drawn,) = json.loads(page.data)["gains"]
    assert drawn["low"] == pytest.approx(gain.low, rel=1e-5) and drawn["p"] == pytest.approx(gain.p, rel=1e-5)
    assert row[header.index("95 % interval")] == f"{gain.low:+.2f} to {gain.high:+.2f}"


def test_the_charts_get_results_curves_and_times_of_every_run(page):
    data = json.loads(page.data)
    baseline, variant = data["entries"]
    assert [run["last"] for run in variant["runs"]] == [72.5, 74.5]
    assert [run["best"] for run in variant["runs"]] == [73.5, 75.5]
    assert variant["runs"][0]["curves"]["test_top1"] == {"x": [1, 2], "y": [71.5, 72.5]}
    assert (variant["base"], variant["weighted"], baseline["weighted"]) == ("KD", True, False)
    assert variant["pairs"] == ["digits: resnet20 → resnet8"] and variant["runs"][0]["seconds"] == 60
    assert "weight_mean" in data["curves"] and "entropy_student" not in data["curves"]  # no run measured it
    assert data["critical"] == [None, pytest.approx(12.7062, rel=1e-5)]


def test_of_a_long_curve_at_most_120_epochs_are_drawn_evenly_to_the_last_one(tmp_path):
    write_run(tmp_path / "run", "KD", 0, 70.0)
    lines = [json.dumps({"epoch": epoch, "test_top1": epoch / 4}) for epoch in range(1, 246)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    ((run,),) = [entry["runs"] for entry in json.loads(Page(report(tmp_path)).data)["entries"]]
    assert run["curves"]["test_top1"] == {"x": list(range(2, 246, 3)), "y": [epoch / 4 for epoch in range(2, 246, 3)]}


def test_p_values_of_charts_are_corrected_for_their_number(tmp_path):
    for method, results in (("KD", (70, 70, 70)), ("EA-KD", (71, 72, 73)), ("DKD", (0, 0, 0)), ("EA-DKD", (1, 1, 4))):
        for seed, top1 in enumerate(results):
            write_run(tmp_path / f"{method}_s{seed}", method, seed, float(top1))
    page = Page(report(tmp_path))
    # as in test_significance: 0.1835 of differences 1, 1, 4; 0.0742 of 1, 2, 3, the smaller one of two tests
    assert [(gain["p"], gain["holm"]) for gain in json.loads(page.data)["gains"]] == [
        (pytest.approx(0.1835, abs=1e-4),) * 2, (pytest.approx(0.0742, abs=1e-4), pytest.approx(0.1484, abs=1e-4))]
    header, *rows = page.table("compared with")
    assert [row[header.index("p, Holm")] for row in rows] == ["0.184", "0.148"]


def test_a_student_alone_belongs_to_the_pairs_of_its_student(tmp_path):
    for method in ("NONE", "KD"):
        write_run(tmp_path / method, method, 0, 70.0)
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "other" / "NONE", "NONE", 0, 70.0)
    config = tmp_path / "other" / "NONE" / "config.yaml"
    config.write_text(config.read_text().replace("resnet8", "resnet14"))
    pairs = {entry["label"] + entry["pairs"][0][-1]: entry["pairs"]
             for entry in json.loads(Page(report(tmp_path)).data)["entries"]}
    assert pairs == {"KD8": ["digits: resnet20 → resnet8"], "student alone8": ["digits: resnet20 → resnet8"],
                     "student alone4": ["digits: resnet14"]}


def test_traced_weights_become_shares_of_the_images(page):
    baseline, variant = json.loads(page.data)["entries"]
    one, other = variant["weights"]["seeds"]
    assert baseline["weights"] is None and one["epochs"] == other["epochs"] == [2] and one["mean"] == [0.5]
    (shares,) = one["shares"]
    assert (shares[0], shares[16], shares[-1], sum(shares)) == (25, 50, 25, 100)  # bins of 1/32 from 0 to 1
    assert variant["weights"]["edges"][-1] == 1


def test_classes_are_compared_with_those_of_the_baseline(page):
    classes = {one["entry"]: one for one in json.loads(page.data)["classes"]}
    assert list(classes) == [2, 1]  # the gain of an EA variant is the one that is shown first
    assert classes[2]["gains"] == [3.0, 0.0] and classes[2]["over"] == "KD"  # 73.5 and 70.5
    assert classes[1]["gains"] == [-19.5, None] and classes[1]["over"] == "the teacher resnet20"


def test_hardest_samples_are_shown_with_weight_and_both_predictions(runs):
    text = report(runs)
    assert text.count(f'<img alt="Test image of class &lt;dog&gt;" src="data:image/png;base64,{PNG}">') == 4
    assert '<dd class="wrong">cat</dd>' in text and '<dd class="right">&lt;dog&gt;</dd>' in text and "1.25" in text


@pytest.mark.parametrize("changed", [{"image": "<script>"}, {"target": 2}, {"weight": "1"}, {"teacher": -1}])
def test_a_damaged_file_of_samples_is_named(tmp_path, changed):
    write_run(tmp_path / "run", "KD", 0, 70.0)
    write_samples(tmp_path / "run", 70.0, **changed)
    with pytest.raises(UserError, match="samples.json: not what tools/samples.py writes"):
        report(tmp_path)


def test_every_finished_run_is_behind_its_configuration_with_config_command_commit_and_log(runs, page):
    text = report(runs)
    seeds = [row for table in page.tables for row in table if row and row[0].startswith("seed ")]
    assert sorted(row[1] for row in seeds) == ["70.00", "71.00", "72.50", "74.50"]
    for number in range(1, 6):
        assert {f"run-{number}-{part}" for part in ("config", "command", "commit", "log")} <= set(page.ids)
    assert "last 72.50, best 73.50 (epoch 1, chosen on None)" in text
    assert "tools/train.py &lt;EA-KD&gt; 1" in text and "c0ffee1" in text and "log of EA-KD &amp; seed 1" in text


def test_of_a_long_log_the_end_is_shown(tmp_path, monkeypatch):
    write_run(tmp_path / "run", "KD", 0, 70.0)
    monkeypatch.setattr("mdistiller.report.page.LONGEST_LOG", 8)
    assert "(the last 8 characters)\n seed 0\n" in report(tmp_path)


def test_the_page_begins_with_the_gains_above_the_baseline_and_those_that_are_sure(tmp_path):
    results = {"KD": (70.0, 71.0), "EA-KD": (72.0, 73.125), "DKD": (72.0, 70.0), "EA-DKD": (72.5, 74.5),
               "AT": (70.0, 71.0), "EA-AT": (69.0, 71.0)}
    for method, values in results.items():
        for seed, top1 in enumerate(values):
            write_run(tmp_path / f"{method}_s{seed}", method, seed, top1)
    text = report(tmp_path)
    # differences 2, 2.125: the mean is 33 times its error, above t(1, 0.975) = 12.7; 0.5, 4.5 are not; -1, 0 are below
    assert "<b>2 of 3</b> EA variants above" in text and "<b>1</b> of them with an interval above 0" in text


def test_an_unfinished_run_is_counted_and_in_no_table_of_results(runs, page):
    text = " ".join(report(runs).split())
    assert "4 finished runs of 2 configurations" in text and "1 more is not finished" in text
    assert not any("DKD" in cell for row in page.table("seeds") for cell in row)
    assert page.table("state")[1][:3] == ["stopped", "stopped", "2 of 2"]


def test_values_of_records_are_only_text(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>\ud800{{ 7 * 7 }}"
    write_run(tmp_path / "run", "EA-KD", 0, 70.0)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("resnet8", json.dumps(hostile[:37])))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"command": hostile, "device": hostile}))
    text = report(tmp_path)
    page = Page(text)
    assert page.images == 0 and "<img" not in text and "{{ 7 * 7 }}" in text
    assert json.loads(page.data)["entries"][0]["device"].startswith("</script>")
    text.encode()


@pytest.mark.parametrize(("missing", "words"), [("plotly.offline", "plotly"), ("jinja2", "jinja2")])
def test_a_missing_library_is_named_in_one_line(runs, monkeypatch, missing, words):
    from mdistiller.report import render

    for cached in (render.plotly_js, render._environment):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs {words}: pip install 'mdistiller-ea\[report\]'"):
        report(runs)
    for cached in (render.plotly_js, render._environment):
        cached.cache_clear()


def test_a_folder_without_runs_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="contains no run folder"):
        report(tmp_path)
