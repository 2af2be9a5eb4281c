"""tools/compare.py: one line per configuration, labelled with every setting that differs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mdistiller.errors import UserError
from mdistiller.report.book import Book, Entry
from mdistiller.report.compare import comparison
from mdistiller.report.page import report
from mdistiller.runs import differences
from mdistiller.runs.progress import progress
from mdistiller.runs.records import RunRecord, find_runs, group_runs
from tests.report.support import make_run, make_runs
from tests.report.test_page import write_run
from tools import compare


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


def test_settings_of_weights_tell_runs_apart_only_where_there_are_weights(tmp_path):
    for method in ("KD", "EA-KD"):
        for seed, temperature in enumerate((3.0, 5.0)):
            make_run(tmp_path, method, seed, 70.0, EA__TEMPERATURE=temperature)
    text = comparison(tmp_path)
    assert lines_of(text) == [("KD", "2", "70.00 ± 0.00")]
    assert [line[:2] for line in lines_of(text, "EA-KD")] == [
        ("EA-KD (EA.TEMPERATURE 3.0)", "1"), ("EA-KD (EA.TEMPERATURE 5.0)", "1")]


def test_students_alone_are_one_configuration_whatever_teacher_their_files_name(tmp_path):
    for seed, teacher in enumerate(("resnet32x4", "vgg13")):
        make_run(tmp_path, "KD", seed, 70.0, metadata={"teacher_sha256": None, "teacher_top1": None},
                 DISTILLER__TYPE="NONE", DISTILLER__TEACHER=teacher)
    assert lines_of(comparison(tmp_path), "student") == [("student alone", "2", "70.00 ± 0.00")]


def test_a_run_without_a_newer_general_key_belongs_to_those_with_its_default(tmp_path):
    for seed in range(3):
        made = make_run(tmp_path, "KD", seed, 70.0, SOLVER__ACCUMULATE=1 + seed // 2)
    config = made.parent / "1" / "config.yaml"
    config.write_text(config.read_text().replace("  ACCUMULATE: 1\n", ""))
    assert "ACCUMULATE" not in config.read_text() and seeds_of_groups(tmp_path) == [[0, 1], [2]]


def test_legends_have_the_last_parts_of_keys_and_long_ones_their_number():
    runs = [RunRecord(Path(), {"DISTILLER.TYPE": "KD"}, {}, {})]
    assert Entry(2, runs).short == "KD"
    assert Entry(2, runs, "KD.LOSS.KD_WEIGHT 0.9, SOLVER.LR 0.1").short == "KD (kd_weight 0.9, lr 0.1)"
    long = Entry(3, runs, "SOLVER.LR_DECAY_STAGES [150, 180, 210], SOLVER.LR 0.1").short
    assert long == "KD (lr_decay_stages [150, 180, 210], lr ... [3]"


def test_unfinished_runs_are_counted_below_the_table(tmp_path):
    make_run(tmp_path, "KD", 0, 72.0)
    make_run(tmp_path, "KD", 1, 12.0, status="interrupted")
    text = comparison(tmp_path)
    assert lines_of(text) == [("KD", "1", "72.00")] and "\nNot finished and left out: 1 run." in text


def test_results_on_validation_images_are_told_as_such(tmp_path):
    make_run(tmp_path, "KD", 0, 72.0, DATASET__TEST__ENABLED=False)
    assert "| KD (on validation images) |" in comparison(tmp_path)


def test_the_epochs_of_a_run_counted_in_updates_are_its_evaluations(tmp_path):
    make_run(tmp_path, "KD", 0, 72.0, SOLVER__MAX_ITER=820)
    path = next(tmp_path.rglob("summary.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 2}))
    assert [line.split("|")[5].strip() for line in comparison(tmp_path).splitlines()[2:] if "| KD" in line] == ["2"]


def lines_of(text, method="KD"):
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    return [(row[2], row[6], row[7]) for row in cells if len(row) > 8 and row[2].split(" ")[0] == method]


def test_every_configuration_is_compared_once_whatever_their_number(tmp_path, monkeypatch):
    runs = [[find_runs(make_run(tmp_path, "KD", 0, 70.0, KD__TEMPERATURE=float(number)))[0]] for number in range(1, 6)]
    calls = []
    monkeypatch.setattr(differences, "equal", lambda one, other: calls.append(one) or one == other)
    assert differences.differences(runs, ["KD"] * 5) == [f"KD.TEMPERATURE {number}.0" for number in range(1, 6)]
    assert len(calls) <= 4 * (len(runs[0][0].config) + 2)


def test_runs_on_two_data_sets_of_one_type_are_two_configurations(tmp_path):
    """Records of older versions, which do not name their data, belong to either and are counted with a single one."""
    def made(method, seed, last, data):
        return make_run(tmp_path, method, seed, last, metadata={"data_sha256": data} if data else {})

    made("KD", 0, 40.0, None), made("KD", 1, 42.0, "1" * 64), made("EA-KD", 0, 44.0, "1" * 64)
    assert lines_of(comparison(tmp_path)) == [("KD", "2", "41.00 ± 1.41")]
    made("KD", 1, 90.0, "2" * 64), made("EA-KD", 1, 91.0, "2" * 64)
    assert lines_of(comparison(tmp_path)) == [
        ("KD (data unknown)", "1", "40.00"), ("KD (data 11111111)", "1", "42.00"), ("KD (data 22222222)", "1", "90.00")]
    gains = Book(tmp_path, find_runs(tmp_path)).gains
    assert {entry.settings: (baseline.settings, gain.mean) for entry, baseline, gain in gains} == {
        "data 11111111": ("data 11111111", 2.0), "data 22222222": ("data 22222222", 1.0)}


def test_a_library_s_teacher_has_a_row_for_each_data_set(tmp_path):
    for data, accuracy in (("cifar100", 70.0), ("digits", 90.0)):
        make_run(tmp_path, "KD", 0, 60.0, DATASET__TYPE=data,
                 metadata={"teacher_sha256": None, "teacher_top1": accuracy})
    rows = [line.replace(" ", "").split("|") for line in comparison(tmp_path).splitlines() if "| teacher " in line][1:]
    assert [(row[1], row[7]) for row in rows] == [("cifar100", "70.00"), ("digits", "90.00")]


def test_seeds_with_several_versions_of_a_users_file_are_averaged_and_named(tmp_path):
    for seed, (folder, version) in enumerate(("1a", "1b", "2b")):
        make_run(tmp_path, "KD", seed, 73.0, metadata={"own_files": {"mine.py": version}},
                 EXPERIMENT__PLUGINS=[f"folder{folder}/mine.py"])
    text = comparison(tmp_path)
    assert "73.00 ± 0.00" in text
    assert text.endswith("KD: 2 versions of mine.py are averaged (seed 0; seeds 1, 2)")


@pytest.mark.parametrize("digests", ("ab", (None, None), ("a", None), ([1], {"a": "a"})))
def test_two_networks_in_files_of_one_name_are_two_configurations(tmp_path, digests):
    for version, digest in enumerate(digests):
        make_run(tmp_path, "KD", version, 70.0 + version, metadata={"own_files": {"net.py": digest}},
                 DISTILLER__STUDENT=f"v{version}/net.py:Net")
    text = comparison(tmp_path)
    assert "v0/net.py:Net" in text and "v1/net.py:Net" in text and "averaged" not in text


def test_a_digest_that_is_no_text_is_as_if_it_was_not_recorded(tmp_path):
    for seed, digest in enumerate(([1], {}, None, "a")):
        make_run(tmp_path, "KD", seed, 73.0, metadata={"own_files": {"n.py": digest}}, DISTILLER__STUDENT="n.py:Net")
    assert "73.00 ± 0.00" in (text := comparison(tmp_path)) and "versions" not in text


def test_of_two_runs_of_one_seed_the_one_started_last_counts_and_the_other_is_named(tmp_path):
    made = {last: make_run(tmp_path, "KD", seed, last, metadata={"started": f"2026-01-0{day}T00:00:00+00:00"})
            for seed, last, day in ((0, 60.0, 2), (0, 9.0, 1), (1, 62.0, 1))}
    shutil.copytree(made[60.0], tmp_path / "copy")  # an archived copy is nothing to tell
    text = comparison(tmp_path)
    assert lines_of(text) == [("KD", "2", "61.00 ± 1.41")]
    assert text.splitlines()[-1] == f"1 run of a seed that is counted already (by the run started last): {made[9.0]}"


def test_a_damaged_folder_is_named_and_the_others_are_shown(tmp_path, capsys):
    write_run(tmp_path / "a_s0", "KD", 0, 70.0)
    for number, text in enumerate(("DISTILLER: {TYPE: K", "", "SOLVER: {EPOCHS: 2}\n")):
        write_run(tmp_path / f"b{number}", "KD", 1, 71.0)
        (tmp_path / f"b{number}" / "config.yaml").write_text(text)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "runs.jsonl").write_text("{")
    assert lines_of(comparison(tmp_path)) == [("KD", "1", "70.00")]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and "b0/config.yaml:1: not valid YAML" in told[0] and "runs.jsonl, line 1" in told[3]
    assert all("DISTILLER.TYPE is missing" in line for line in told[1:3])
    assert report(tmp_path).count('<p class="problem">') == 4


def test_linked_folders_are_followed_once(tmp_path):
    for folder in ("disk/project", "output"):
        (tmp_path / folder).mkdir(parents=True)
    write_run(tmp_path / "disk" / "project" / "KD_s1", "KD", 1, 71.0)
    write_run(tmp_path / "output" / "KD_s0", "KD", 0, 70.0)
    os.symlink(tmp_path / "disk" / "project", tmp_path / "output" / "project")
    os.symlink(tmp_path / "output", tmp_path / "output" / "project" / "circle")
    runs = find_runs(tmp_path / "output")
    assert [run.seed for (*group,) in group_runs(runs) for run in group] == [0, 1] and len(runs) == 2
    assert progress(tmp_path / "output", runs).done == 2


def test_a_folder_that_is_missing_is_named_with_its_option(monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare.py", "nowhere"])
    with pytest.raises(UserError, match="runs: no such folder: nowhere"):
        compare.main()


def seeds_of_groups(root):
    return sorted([run.seed for run in group] for group in group_runs(find_runs(root)))


def test_a_run_without_a_newer_key_of_its_method_belongs_to_those_with_its_default(tmp_path):
    newer = {"KD.LOSS.NEWER": 1.0}
    make_run(tmp_path, "KD", 0, 70.0)
    make_run(tmp_path, "KD", 1, 71.0, **newer)
    make_run(tmp_path, "KD", 2, 72.0, KD__LOSS__NEWER=2.0, metadata={"overridden": {"KD.LOSS.NEWER": 2.0}})
    assert seeds_of_groups(tmp_path) == [[0, 1], [2]]
    make_run(tmp_path, "KD", 3, 73.0, KD__LOSS__NEWER=3.0)  # the default of a third version: the first may have either
    assert seeds_of_groups(tmp_path) == [[0], [1], [2], [3]]


def test_what_only_newer_runs_name_is_no_difference(tmp_path):
    make_run(tmp_path, "KD", 0, 70.0)
    make_run(tmp_path, "KD", 0, 71.0, KD__LOSS__NEWER=1.0, SOLVER__LR=0.1, metadata={"data_sha256": "1" * 64})
    assert [row[0] for row in lines_of(comparison(tmp_path))] == ["KD (SOLVER.LR 0.05)", "KD (SOLVER.LR 0.1)"]
    make_run(tmp_path, "KD", 0, 72.0, KD__LOSS__NEWER=2.0, metadata={"overridden": {"KD.LOSS.NEWER": 2.0}})
    assert [row[0] for row in lines_of(comparison(tmp_path))] == [
        f"KD (KD.LOSS.NEWER {value}, SOLVER.LR {rate})" for value, rate in ((1.0, 0.05), (1.0, 0.1), (2.0, 0.05))]
