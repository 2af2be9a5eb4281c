"""Tables 6 and A2 from the command line: printed numbers, commands for missing cells, and a row made by one command."""

import re
from pathlib import Path

import pytest

from tests.detection.support import write_coco
from tests.forked import run_tool

REPOSITORY = Path(__file__).resolve().parents[2]


def text_of(done):
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(("table", "printed", "missing"), [
    ("6", ["42.04", "33.26", "33.97", "34.78", "30.13", "31.81", "53.18"], 42), ("A2", ["35.05", "35.16", "37.82"], 18),
])
def test_an_empty_table_shows_the_papers_numbers_and_the_commands_for_its_cells(tmp_path, table, printed, missing):
    text = text_of(run_tool("tables", ["--table", table, "--runs", tmp_path], REPOSITORY))
    assert not [number for number in printed if number not in text]
    assert "very likely quoted from" in text
    assert f"Missing: {missing} of {missing} cells" in text
    assert f"python tools/sweep.py --table {table} LOG.PREFIX={tmp_path} --methods EA-" in text
    assert "controls: is it the weighting" in text
    assert "Average precision in percent on the test images" in text
    assert "average gain" not in text  # AP, AP50 and AP75 have no mean
    assert "KD, constant' --pairs" in text and "KD, weight 4' --pairs" in text


def test_one_command_trains_and_evaluates_a_row_on_real_images_and_the_table_shows_it(tmp_path):
    write_coco(tmp_path / "data" / "coco_tiny")  # below DATASET.ROOT: read in place of drawn digits
    words = ["--table", "6", "--smoke", f"DATASET.ROOT={tmp_path / 'data'}", f"LOG.PREFIX={tmp_path / 'o'}"]
    chosen = ["--methods", "EA-KD", "--pairs", "R-101 & R-18, AP"]
    done = run_tool("sweep", [*words[:3], *chosen, *words[3:]], REPOSITORY)
    assert "1 of 1 done" in text_of(done)
    (config,) = (tmp_path / "o").rglob("config.yaml")
    assert "TYPE: coco_tiny" in config.read_text()
    text = text_of(run_tool("tables", words, REPOSITORY))
    assert re.search(r"\| EA-KD \| 1 \| \d+\.\d\d \| \d+\.\d\d \| 34\.78 \| \S \|", text)  # no difference is shown
    assert "A smoke run" in text and "coco_tiny" in text
