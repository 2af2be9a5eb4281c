"""tools/compare.py: one line per configuration, labelled with every setting that differs."""

import json

from mdistiller.report.book import Book
from mdistiller.report.compare import comparison
from mdistiller.runs.records import find_runs
from tests.report.support import make_run, make_runs


def test_configurations_of_one_method_are_labelled_with_every_setting_that_differs(tmp_path):
    make_runs(tmp_path, "KD", [70.0, 71.0])
    make_run(tmp_path, "KD", 0, 72.0, SOLVER__LR=0.1, KD__TEMPERATURE=8.0)
    make_run(tmp_path, "KD", 0, 73.0, metadata={"teacher_sha256": "b" * 64}, LOG__PREFIX="elsewhere")
    make_run(tmp_path, "EA-KD", 0, 74.0)
    methods = [line.split("|")[2].strip() for line in comparison(tmp_path).splitlines()[2:]]
    methods = [method for method in methods if method != "teacher"]
    assert methods == [
        "KD (KD.TEMPERATURE 4.0, SOLVER.LR 0.05, teacher aaaaaaaa)",
        "KD (KD.TEMPERATURE 8.0, SOLVER.LR 0.1, teacher aaaaaaaa)",
        "KD (KD.TEMPERATURE 4.0, SOLVER.LR 0.05, teacher bbbbbbbb)", "EA-KD"]
    assert sorted(entry.label for entry in Book(tmp_path, find_runs(tmp_path)).entries) == sorted(methods)


def test_results_on_validation_images_are_told_as_such(tmp_path):
    make_run(tmp_path, "KD", 0, 72.0, DATASET__TEST__ENABLED=False)
    assert "| KD (on validation images) |" in comparison(tmp_path)


def test_the_epochs_of_a_run_counted_in_updates_are_its_evaluations(tmp_path):
    make_run(tmp_path, "KD", 0, 72.0, SOLVER__MAX_ITER=820)
    path = next(tmp_path.rglob("summary.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 2}))
    assert [line.split("|")[5].strip() for line in comparison(tmp_path).splitlines()[2:] if "| KD" in line] == ["2"]
