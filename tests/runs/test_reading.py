"""Damaged or malicious records give one error line or a gap, and a full disk leaves written files intact."""

import errno
import json
import os

import pytest

from mdistiller.errors import RunError, UserError
from mdistiller.report.compare import comparison
from mdistiller.report.formats import latex
from mdistiller.report.layout import Heading, Items, Paragraph
from mdistiller.report.page import report
from mdistiller.report.pages import marks, write_into
from mdistiller.runs.keeping import keep_records
from mdistiller.runs.kept import RUNS
from mdistiller.runs.reading import read_metrics
from mdistiller.runs.records import find_runs
from tests.report.support import make_run

DEEP = "[" * 3000 + "]" * 3000


def write_metrics(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("line, says", [
    ("{", "line 1: expected a run"), ("[]", "line 1: expected a run"), (DEEP, "at most 20 levels"),
    ('{"name": "../a", "config": {}, "summary": {}, "run": {}}', "line 1: expected a run"),
    ('{"name": "a", "config": {}, "summary": {"last_top1": "x"}, "run": {}}', "a: last_top1: expected a number"),
])
def test_a_damaged_line_is_reported_with_its_number(line, says, tmp_path):
    (tmp_path / RUNS).write_text(f"{line}\n")
    with pytest.raises(UserError, match=says):
        find_runs(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "runs", "KD", 0, 70.0)
    keep_records(find_runs(tmp_path / "runs"), tmp_path / "kept")
    page = tmp_path / "kept" / "page.md"
    page.write_text("\n".join(marks("a")))
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    write_metrics(folder, '{"epoch": 1}')

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: keep_records(find_runs(tmp_path / "runs"), tmp_path / "kept"),
                  lambda: write_into(page, "a", "new")):
        with pytest.raises(RunError, match="No space left"):
            write()
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before


@pytest.mark.parametrize("name, key, value", [
    ("summary.json", "last_top1", "1" + 400 * "0"), ("run.json", "teacher_top1", "1" + 400 * "0"),
    ("summary.json", "last_top1", "1" * 5000), ("summary.json", "last_top1", "Infinity"),
    ("summary.json", "last_top1", DEEP), ("run.json", "versions", DEEP), ("run.json", "device", "[]"),
    ("run.json", "teacher_sha256", "[]"), ("summary.json", "status", "[]"),
])
def test_an_invalid_value_in_a_record_is_reported_in_one_line(name, key, value, tmp_path):
    path = make_run(tmp_path, "KD", 0, 70.0) / name
    content = json.dumps({**json.loads(path.read_text()), key: "HERE"})
    path.write_text(content.replace('"HERE"', value))
    for read in (comparison, report):
        with pytest.raises(UserError, match=name) as error:
            read(tmp_path)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("line", [
    '{"epoch": NaN, "test_top1": 3}', '{"epoch": Infinity, "test_top1": 3}', '{"epoch": 1e999, "test_top1": 3}',
    '{"epoch": 2, "test_top1": Infinity}', '{"epoch": 2, "test_top1": 1%s}' % ("0" * 400),
    '{"epoch": 1%s, "test_top1": 3}' % ("0" * 400), '{"epoch": 2, "test_top1": 3, "weight_mean": 1.0}',
])
def test_a_page_has_a_gap_where_an_epoch_holds_no_measurement(line, tmp_path):
    folder = make_run(tmp_path, "EA-KD", 0, 70.0, metadata={"versions": None}.items())
    good = [f'{{"epoch": {epoch}, "test_top1": {epoch}, "weight_mean": 1.0, "weight_std": 0.1}}' for epoch in (1, 3)]
    write_metrics(folder, good[0], line, good[1])
    assert '"curves":{"test_top1":{"x":[1,' in report(tmp_path)


def test_names_of_networks_and_folders_are_escaped_in_html(tmp_path):
    hostile = "<script>|x\n\\input{a}"
    folder = make_run(tmp_path, "KD", 0, 70.0, DISTILLER__STUDENT=hostile)
    lines = comparison(tmp_path).splitlines()
    assert "<script>" not in "".join(lines) and len(lines) == 4 and "&lt;script&gt;\\|x \\input{a}" in lines[-1]
    text = latex([Items((f"{folder}\n\\input{{/a/file}}",)), Heading("a\n\\b", 2), Paragraph("a\n\\b")])
    assert all(line.startswith("%") for line in text.splitlines() if line)


def test_deeply_nested_metrics_are_refused(tmp_path):
    write_metrics(tmp_path, f'{{"epoch": {DEEP}}}')
    with pytest.raises(UserError, match="metrics.jsonl, line 1: expected at most 20 levels"):
        read_metrics(tmp_path / "metrics.jsonl")
