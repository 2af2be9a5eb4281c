"""The page of a folder of runs: nothing from outside, the numbers of the run folders, links that lead somewhere."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mdistiller.errors import UserError
from mdistiller.report.html import report
from mdistiller.report.svg import ticks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ACCURACY = {"KD": (70.0, 71.0), "EA-KD": (72.5, 73.5)}  # of two seeds, last epoch


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """KD and EA-KD over two seeds, and one run that was interrupted."""
    root = tmp_path_factory.mktemp("runs")
    for method, values in ACCURACY.items():
        for seed, top1 in enumerate(values):
            write_run(root / f"{method}_s{seed}", method, seed, top1)
    write_run(root / "stopped", "DKD", 0, 11.11, status="interrupted")
    return root


def write_run(folder, method, seed, top1, status="done"):
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"EXPERIMENT: {{SEED: {seed}}}\nDATASET: {{TYPE: digits}}\n"
        f"DISTILLER: {{TYPE: {method}, TEACHER: resnet20, STUDENT: resnet8}}\nSOLVER: {{EPOCHS: 2}}\n"
    )
    summary = {"status": status, "epoch": 2, "last_top1": top1, "best_top1": top1 + 1, "best_epoch": 1}
    (folder / "summary.json").write_text(json.dumps(summary))
    metadata = {"command": f"tools/train.py <{method}> {seed}", "commit": f"c0ffee{seed}", "teacher_top1": 96.79,
             "teacher_sha256": "ab"}
    (folder / "run.json").write_text(json.dumps(metadata))
    weights = {"weight_mean": 0.8, "weight_std": 0.3} if method.startswith("EA-") else {}
    lines = [json.dumps({"epoch": epoch, "test_top1": top1 - 2 + epoch, **weights}) for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epo')  # killed while it wrote
    (folder / "train.log").write_text(f"log of {method} & seed {seed}\n")


class Page(HTMLParser):
    """Tables as rows of text, ids, links and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.links, self.fetched, self.images = [], [], [], [], 0
        self.in_cell, self.text = False, text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        sources = [attrs.get(key) for key in ("src", "srcset", "data", "poster", "action", "xlink:href")]
        self.fetched += [value for value in sources if value] + ([attrs["href"]] if tag == "link" else [])
        self.images += tag == "img"
        assert tag not in ("script", "iframe", "object", "embed", "base")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def test_nothing_is_fetched_and_every_link_leads_to_a_place_on_the_page(runs, tmp_path):
    (tmp_path / "figure_2.png").write_bytes(b"\x89PNG")
    page = Page(report(runs, tmp_path))
    assert page.images == 1 and all(address.startswith("data:") for address in page.fetched)
    assert not re.search(r"url\(|@import|https?://", page.text)
    assert len(page.ids) == len(set(page.ids))
    assert page.links and all(link[0] == "#" and link[1:] in page.ids for link in page.links)


def test_the_table_holds_the_numbers_of_the_run_folders(runs):
    header, *rows = Page(report(runs)).tables[0]
    by_method = {row[header.index("method")]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_method) == ["KD", "EA-KD"]
    assert by_method["KD"]["top-1, last epoch"] == "70.50 ± 0.71"  # 70 and 71
    assert by_method["EA-KD"]["top-1, best epoch"] == "74.00 ± 0.71"
    assert {row["seeds"] for row in by_method.values()} == {"2"}


def test_every_finished_run_is_behind_its_configuration_with_config_command_commit_and_log(runs):
    text = report(runs)
    page = Page(text)
    seeds = [row for table in page.tables for row in table if row and row[0].startswith("seed ")]
    assert sorted(row[1] for row in seeds) == ["70.00", "71.00", "72.50", "73.50"]
    for number in range(1, 6):
        assert {f"run-{number}-{part}" for part in ("config", "command", "commit", "log")} <= set(page.ids)
    assert "tools/train.py &lt;EA-KD&gt; 1" in text and "c0ffee1" in text and "log of EA-KD &amp; seed 1" in text


def test_an_unfinished_run_is_counted_and_in_no_table(runs):
    text = report(runs)
    assert "4 finished runs of 2 configurations" in text and "1 more are not finished" in text
    assert not any("DKD" in cell for row in Page(text).tables[0] for cell in row)


def test_curves_of_accuracy_and_of_the_weights_of_methods_that_have_them(runs):
    text = report(runs)
    assert "Accuracy: resnet8 on digits" in text and "Sample weights: resnet8 on digits" in text
    assert "Student entropy" not in text  # no run measured it


def test_a_folder_without_runs_is_the_users_to_fix(tmp_path):
    with pytest.raises(UserError, match="contains no run folder"):
        report(tmp_path)


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 10, [0, 2, 4, 6, 8, 10]), (68.6, 72.1, [69, 70, 71, 72]), (0.5, 0.5, [0.5]),
])
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == expected


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_browser_shows_the_table_and_nothing_fails_to_load(runs, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report(runs))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "70.50 ± 0.71" in shown.stdout
    assert "ERR_" not in shown.stderr and "CONSOLE" not in shown.stderr
