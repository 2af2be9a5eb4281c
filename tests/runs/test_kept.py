"""Kept studies: the records of run folders in two files, to which runs are added atomically."""

import json
import time
from dataclasses import replace

import pytest

from mdistiller.errors import RunError, UserError
from mdistiller.files import write_text
from mdistiller.runs import keeping
from mdistiller.runs.keeping import keep_records
from mdistiller.runs.kept import METRICS, RUNS, read_kept_metrics
from mdistiller.runs.records import find_runs
from tests import forked
from tests.engine.support import run
from tests.report.support import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run(root, "EA-KD", "SOLVER.EPOCHS", 2, "EXPERIMENT.SEED", seed)
    return root


def test_a_kept_run_reads_as_its_folder_did(folder, tmp_path):
    runs = find_runs(folder)
    assert keep_records(runs, tmp_path / "study") == 2
    for before, after in zip(runs, find_runs(tmp_path), strict=True):
        assert after.path == tmp_path / "study" / before.path.name
        assert (after.config, after.summary, after.identity) == (before.config, before.summary, before.identity)
        assert after.metrics() == before.metrics() and len(after.metrics()) == 2
        assert after.config_text() == before.config_text()
        assert after.metadata["versions"] == before.metadata["versions"] and "host" not in after.metadata


def test_scores_of_answers_are_kept_and_checked(folder, tmp_path):
    scores = {"latest": {"dolly": {"ngram6": {"rouge_l": 9.5, "rouge_l_std": None, "examples": 100}}}}
    first, second = find_runs(folder)
    scored = replace(first, path=tmp_path / "run")
    (scored.path / "answers" / "latest").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (scored.path / name).write_bytes((first.path / name).read_bytes())
    (scored.path / "answers" / "latest" / "scores.json").write_text(json.dumps(scores["latest"]))
    keep_records([scored, second], tmp_path / "study")
    assert [one.answers for one in find_runs(tmp_path / "study")] == [{}, scores]
    lines = (tmp_path / "study" / RUNS).read_text().replace('"rouge_l": 9.5', '"rouge_l": "much"')
    (tmp_path / "study" / RUNS).write_text(lines)
    with pytest.raises(UserError, match="runs.jsonl: run: answers: dolly: expected numbers as rouge_l"):
        assert find_runs(tmp_path / "study")[1].answers


def test_runs_are_added_and_replaced_by_name(folder, tmp_path):
    first, second = find_runs(folder)
    keep_records([first], tmp_path)
    keep_records([second], tmp_path)
    assert [one.seed for one in find_runs(tmp_path)] == [0, 1]
    before = {name: (tmp_path / name).read_bytes() for name in (RUNS, METRICS)}
    keep_records([first], tmp_path)
    keep_records(find_runs(tmp_path), tmp_path / "copy")  # kept runs can be copied to another folder
    for place in (tmp_path, tmp_path / "copy"):
        assert {name: (place / name).read_bytes() for name in before} == before


def made(root, row="KD", seed=0, last=70.0, started="2026-11-01T10:00:00+00:00", **changed):
    return make_run(root, row, seed, last, name="run", metadata={"started": started}, **changed)


def test_of_a_run_of_two_machines_the_last_one_is_kept_with_what_a_copy_alone_has(tmp_path):
    whole, archive = made(tmp_path / "a"), tmp_path / "study"
    (whole / "metrics.jsonl").write_text('{"epoch": 1, "test_top1": 70.0}\n')
    (whole / "answers" / "best").mkdir(parents=True)
    (whole / "answers" / "best" / "scores.json").write_text('{"dolly": {"ngram6": {"rouge_l": 9.5}}}')
    made(tmp_path / "b")  # the same run, copied without these files
    made(tmp_path / "c", last=60.0, started="2026-11-01T09:00:00+00:00")  # trained before it, on another machine
    for root in ("a", "b", "c", "."):  # from each machine in turn, and from a folder with all of them
        assert keep_records(find_runs(tmp_path / root), archive) == 1
        (kept,) = find_runs(archive)
        assert kept.result("last") == 70.0 and kept.answers["best"]["dolly"]["ngram6"]["rouge_l"] == 9.5
        assert read_kept_metrics(archive / METRICS) == {"run": [{"epoch": 1, "test_top1": 70.0}]}
    made(tmp_path / "d", last=80.0, started="2026-11-01T11:00:00+00:00")
    keep_records(find_runs(tmp_path / "d"), archive)
    (kept,) = find_runs(archive)
    assert kept.result("last") == 80.0 and not kept.answers and not read_kept_metrics(archive / METRICS)


def test_answers_that_are_scored_again_replace_the_archived_ones(tmp_path):
    scores = made(tmp_path / "runs") / "answers" / "best" / "scores.json"
    scores.parent.mkdir(parents=True)
    for dolly in (9.5, 9.0):
        scores.write_text(json.dumps({"dolly": {"ngram6": {"rouge_l": dolly}}}))
        keep_records(find_runs(tmp_path / "runs"), tmp_path / "study")
        (kept,) = find_runs(tmp_path / "study")
        assert kept.answers["best"]["dolly"]["ngram6"]["rouge_l"] == dolly


@pytest.mark.parametrize("other", [{"SOLVER__LR": 0.01}, {"seed": 1}, {"row": "DKD"}])
def test_another_run_of_the_same_name_does_not_replace_the_archived_one(other, tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", **other)
    keep_records(find_runs(tmp_path / "a"), tmp_path / "study")
    before = (tmp_path / "study" / RUNS).read_bytes()
    for runs in (find_runs(tmp_path / "b"), find_runs(tmp_path)):
        with pytest.raises(UserError, match="two runs of the same name, .*; rename a run's folder"):
            keep_records(runs, tmp_path / "study")
    assert (tmp_path / "study" / RUNS).read_bytes() == before


def test_a_name_that_a_line_cannot_hold_is_refused(tmp_path):
    made(tmp_path).rename(tmp_path / "any" / "run\r")  # of a script with the line ends of Windows
    with pytest.raises(UserError, match=r"run\\r': cannot be archived: .*; rename the folder"):
        keep_records(find_runs(tmp_path), tmp_path / "study")


def test_runs_that_two_processes_keep_at_once_are_all_there(folder, tmp_path, monkeypatch):
    def slowly(path, text):
        time.sleep(0.3)  # the other process would have read by then
        write_text(path, text)

    monkeypatch.setattr(keeping, "write_text", slowly)
    done = forked.run_together([lambda run=run: keep_records([run], tmp_path) and None for run in find_runs(folder)])
    assert [process.returncode for process in done] == [0, 0]
    assert [one.seed for one in find_runs(tmp_path)] == [0, 1] and len(read_kept_metrics(tmp_path / METRICS)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {RUNS, METRICS}


def test_a_full_disk_leaves_the_kept_records_intact(folder, tmp_path, monkeypatch):
    first, second = find_runs(folder)
    keep_records([first], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        keep_records([second], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("line", [
    "{", "[]", '{"name": 3}', '{"name": "a", "config": {}, "summary": []}', "[" * 100_000,
    '{"name": "a", "config": {}, "summary": {}, "run": {}}\n{"name": "a", "config": {}, "summary": {}, "run": {}}',
])
def test_invalid_lines_of_runs_are_named(line, tmp_path):
    (tmp_path / RUNS).write_text(line + "\n")
    with pytest.raises(UserError, match=f"{RUNS}, line [12]: expected (a run's name|at most 20 levels)"):
        find_runs(tmp_path)


def test_invalid_rows_of_epochs_are_named(folder, tmp_path):
    keep_records(find_runs(folder), tmp_path)
    for text in ("run,epoch\nx,much\n", "run,epohc\nx,1\n"):
        (tmp_path / METRICS).write_text(text)
        with pytest.raises(UserError, match=f"{METRICS}, line 2: expected a run's name and numbers"):
            read_kept_metrics(tmp_path / METRICS)


@pytest.mark.parametrize("end", [1, 2, 5, 12])
def test_epochs_that_are_cut_off_within_a_line_are_not_read_as_other_numbers(end, folder, tmp_path):
    keep_records(find_runs(folder), tmp_path)
    (tmp_path / METRICS).write_text((tmp_path / METRICS).read_text()[:-end])
    for action in (lambda: read_kept_metrics(tmp_path / METRICS), lambda: keep_records(find_runs(folder), tmp_path)):
        with pytest.raises(UserError, match=f"{METRICS}: its last line is cut off; copy or restore it"):
            action()


def test_summaries_of_other_types_are_named(folder, tmp_path):
    keep_records(find_runs(folder)[:1], tmp_path)
    row = json.loads((tmp_path / RUNS).read_text())
    row["summary"]["last_top1"] = "much"
    (tmp_path / RUNS).write_text(json.dumps(row))
    with pytest.raises(UserError, match="last_top1: expected a number"):
        find_runs(tmp_path)
