"""How far the runs of a folder are, and how long they still take, worked out by hand."""

import json
import os

from mdistiller.runs.progress import progress
from mdistiller.runs.records import find_runs

NOW = 1_000_000.0


def write(folder, status, epoch, seconds, changed=NOW - 5):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("DATASET: {TYPE: digits}\nSOLVER: {EPOCHS: 10}\n"
                                        "DISTILLER: {TYPE: KD, TEACHER: a, STUDENT: b}\n")
    summary = {"status": status, "epoch": epoch, "last_top1": 50.0, "best_top1": 50.0, "wall_seconds": seconds}
    (folder / "summary.json").write_text(json.dumps(summary))
    os.utime(folder / "summary.json", (changed, changed))


def states(found):
    return {one.name: one.state for one in found.unfinished}


def test_remaining_time_counts_running_and_waiting_runs_in_parallel(tmp_path):
    write(tmp_path / "sweep" / "done", "done", 10, 100.0)
    write(tmp_path / "sweep" / "half", "running", 5, 60.0)  # 60 s left
    write(tmp_path / "sweep" / "early", "running", 1, 10.0)  # 90 s left
    folder = tmp_path / ".sweep" / "sweep"
    folder.mkdir(parents=True)
    for name, runs in (("plan1.json", ["done", "half", "early"]), ("plan2.json", ["early", "later", "last"])):
        (folder / name).write_text(json.dumps({"runs": runs, "jobs": 1}))  # of two sweeps at once
    found = progress(tmp_path, find_runs(tmp_path), NOW)
    assert states(found) == {"half": "running", "early": "running", "later": "waiting", "last": "waiting"}
    assert {one.name: one.left for one in found.unfinished if one.left} == {"half": 60, "early": 90}
    assert (found.done, found.total, found.left) == (1, 5, (60 + 90 + 100 + 100) / 2)


def test_failed_stopped_and_silent_runs_are_listed_first_without_remaining_time(tmp_path):
    write(tmp_path / "p" / "a", "running", 5, 60.0)
    write(tmp_path / "p" / "b", "running", 5, 60.0, changed=NOW - 3600)
    write(tmp_path / "p" / "c", "interrupted", 5, 60.0)
    write(tmp_path / "p" / "d", "failed", 5, 60.0)
    (tmp_path / ".sweep" / "p").mkdir(parents=True)
    (tmp_path / ".sweep" / "p" / "e.failed").write_text('{"error": "refused"}')
    (tmp_path / ".sweep" / "p" / "f.failed").write_text('{"err')  # being written
    found = progress(tmp_path, find_runs(tmp_path), NOW)
    assert list(states(found).items()) == [
        ("d", "failed"), ("e", "failed"), ("b", "silent"), ("a", "running"), ("c", "stopped")]
    assert found.unfinished[1].error == "refused" and found.left == 60 and found.unfinished[3].percent == 50


def test_a_run_is_silent_after_ten_minutes_or_five_of_its_epochs(tmp_path):
    for name, seconds, silence in (("a", 50.0, 590), ("b", 50.0, 610), ("c", 5000.0, 4990), ("d", 5000.0, 5010)):
        write(tmp_path / "p" / name, "running", 5, seconds, changed=NOW - silence)
    found = progress(tmp_path, find_runs(tmp_path), NOW)
    assert states(found) == {"a": "running", "b": "silent", "c": "running", "d": "silent"}


def test_a_run_of_unknown_length_leaves_the_whole_time_unknown(tmp_path):
    write(tmp_path / "p" / "a", "running", 0, 0.0)
    found = progress(tmp_path, find_runs(tmp_path), NOW)
    assert found.left is None and found.unfinished[0].left is None and progress(tmp_path, [], NOW).left is None


def test_what_failed_or_waits_on_one_machine_is_not_told_of_the_copy_of_another(tmp_path):
    for machine, status in (("laptop", "running"), ("cluster", "failed")):
        write(tmp_path / machine / "sweep" / "a", status, 5, 60.0)
        folder = tmp_path / machine / ".sweep" / "sweep"
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text('{"runs": ["a", "b"], "jobs": 1}')
    (folder / "a.failed").write_text('{"error": "no memory"}')
    (tmp_path / "link").symlink_to(tmp_path / "laptop")
    found = progress(tmp_path, find_runs(tmp_path), NOW)
    assert [(one.name, one.state, one.error) for one in found.unfinished] == [
        ("a", "failed", "no memory"), ("a", "running", ""), ("b", "waiting", ""), ("b", "waiting", "")]
