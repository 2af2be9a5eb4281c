"""Plans of sweeps from synthetic run folders, without training."""

import json
import re
import shlex
from argparse import Namespace

import pytest

from mdistiller.config import load_cfg
from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.files import sha256
from mdistiller.report.layout import fill_command
from mdistiller.report.study import load_studies
from mdistiller.runs.fill import fill
from mdistiller.runs.paper import covered_tables, load_tables
from mdistiller.runs.progress import PLANS, read_plan
from mdistiller.runs.records import find_runs
from mdistiller.runs.training import SMOKE, Training
from mdistiller.sweep.plan import (
    DONE,
    FAILED,
    LEFT,
    STARTED,
    PlannedRun,
    Progress,
    announced,
    choose_cells,
    duration,
    grouped,
    plan_runs,
    summary,
)
from tests import forked
from tests.report.support import REPOSITORY, make_run
from tools import sweep

SCRIPTS = REPOSITORY / "scripts"


def planned(root, row="KD", seed=0, *extra, smoke=False):
    cell = load_tables()["2"].cells[row, "res32x4_res8x4"]
    return PlannedRun(Training.of_cell(cell, (f"LOG.PREFIX={root}", *extra), smoke), seed)


def test_the_command_that_fills_a_cell_chooses_that_cell_alone():
    for table in covered_tables(["all"]):
        for cell in fill(table, []).cells.values():
            words = shlex.split(fill_command(cell, "sweep"))
            assert words[:2] == ["sweep", "--methods"] and words[3] == "--pairs"
            assert choose_cells([table], [words[2]], [words[4]]) == [cell.cell]


def test_cells_are_chosen_by_method_and_pair_whatever_their_case():
    table = load_tables()["2"]
    assert len(choose_cells([table])) == 98
    assert len(choose_cells([table], ["ea-kd", "KD"], ["vgg13_vgg8"])) == 2
    with pytest.raises(UserError, match="'EAKD' names no cell of the table; nearest: EA-KD"):
        choose_cells([table], ["EAKD"])


def test_a_training_of_several_tables_is_planned_once_and_names_are_all_different():
    trainings = [Training.of_cell(cell) for cell in choose_cells(covered_tables(["all"]))]
    runs = plan_runs([*((training, 2) for training in trainings), (trainings[0], 1)])
    assert len(runs) == 2 * 166 == len({run.folder for run in runs})
    assert runs[0].folder.name == "cifar100_kd_res32x4_res8x4_s0" and runs[166].seed == 1
    assert {run.name for run in runs if "EA.KIND-base" in run.name} >= {
        "cifar100_ea_kd_res32x4_res8x4_EA.KIND-base_s0"}


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("reproduce_table*.sh")), ids=lambda path: path.stem)
def test_a_script_trains_what_its_first_lines_promise(script):
    trainings, seeds = map(int, re.search(r"(\d+) trainings, each over (\d+) seeds", script.read_text()).groups())
    chosen = {"study": None, "table": [script.stem.removeprefix("reproduce_table")], "methods": [], "pairs": []}
    runs = sweep.planned(Namespace(opts=[], smoke=False, seeds=None, **chosen))
    assert (len({run.training for run in runs}), len(runs)) == (trainings, trainings * seeds) and seeds >= 3


def test_two_files_that_would_share_a_run_folder_are_refused_at_once(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder / "p").mkdir(parents=True)
        (tmp_path / folder / "p/kd.yaml").write_text("SOLVER: {EPOCHS: 1}\n")
    trainings = [Training(f"{tmp_path}/{folder}/p/kd.yaml") for folder in ("x", "y")]
    with pytest.raises(UserError, match="y/p/kd.yaml and .*x/p/kd.yaml: both would train in .*p_kd_s0"):
        plan_runs([(training, 1) for training in trainings])
    assert len(plan_runs([(trainings[0], 2)])) == 2


def test_lines_of_a_study_are_chosen_in_either_case_and_over_any_number_of_seeds(monkeypatch):
    def runs(*words):
        monkeypatch.setattr("sys.argv", ["sweep.py", "--study", "small", "--methods", *words])
        return [(run.training.label, run.seed) for run in sweep.planned(sweep.parse())]

    assert runs("ea-dkd", "--seeds", "6") == [("EA-DKD", seed) for seed in range(6)]
    assert len(runs("ea-dkd")) == load_studies()["small"].lines["EA-DKD"].seeds == 3
    with pytest.raises(UserError, match="unknown line of study small 'EA-KD, normalised'; nearest: EA-KD, normalized;"):
        runs("EA-KD, normalised")


def test_the_command_of_a_run_names_its_folder_and_seed(tmp_path):
    run = planned(tmp_path, "EA-KD", 3, "SOLVER.EPOCHS=2", "DATASET.ROOT=/data")
    assert run.folder == tmp_path / "sweep" / "cifar100_ea_kd_res32x4_res8x4_SOLVER.EPOCHS-2_s3"
    assert run.command[0].endswith("tools/train.py") and "--resume" in run.command
    assert run.command[-3:] == ["EXPERIMENT.PROJECT=sweep", f"EXPERIMENT.NAME={run.name}", "EXPERIMENT.SEED=3"]
    with pytest.raises(UserError, match="use --seeds N"):
        planned(tmp_path, "KD", 0, "EXPERIMENT.SEED=1")


@pytest.mark.parametrize("project", ["sweep", "a/b", "a b"])
def test_a_run_trains_in_the_folder_of_its_plan(tmp_path, project):
    run = planned(tmp_path, "KD", 1, f"EXPERIMENT.PROJECT={project}")
    assert run.folder.parent == tmp_path / project
    assert RunFolder.open(load_cfg(run.training.path, run.opts), resume=False).path == run.folder


@pytest.mark.parametrize("project", ["../x", "a/../../x", "", ".", "/abs"])
def test_a_project_outside_the_folder_of_all_runs_is_refused(tmp_path, project):
    with pytest.raises(UserError, match="PROJECT: expected, in a sweep, a folder below"):
        plan_runs([(planned(tmp_path, "KD", 0, f"EXPERIMENT.PROJECT={project}").training, 1)])


def test_a_finished_run_counts_wherever_it_is_and_whatever_its_name(tmp_path):
    make_run(tmp_path, "KD", 0, 73.0)
    make_run(tmp_path, "KD", 1, 73.0, SOLVER__EPOCHS=2)
    progress = Progress(find_runs(tmp_path))
    assert [progress.state(planned(tmp_path, "KD", seed)) for seed in (0, 1)] == [DONE, LEFT]
    assert progress.state(planned(tmp_path, "KD", 1, "SOLVER.EPOCHS=2")) == DONE


@pytest.mark.parametrize("recorded", ["none", "bf16"])  # what the run took on its device
def test_a_finished_run_counts_where_the_precision_was_left_to_the_device(tmp_path, recorded):
    make_run(tmp_path, "KD", 0, 73.0, SOLVER__AMP=recorded)
    progress = Progress(find_runs(tmp_path))
    assert progress.state(planned(tmp_path, "KD", 0, "SOLVER.AMP=auto")) == DONE
    assert progress.state(planned(tmp_path, "KD", 0, "SOLVER.AMP=fp16")) == LEFT


def test_long_names_of_runs_are_cut_off_and_still_differ(tmp_path):
    names = [planned(tmp_path, "KD", 0, f"EXPERIMENT.PLUGINS=[{'long' * 50}{end}]").name for end in "ab"]
    assert names[0] != names[1] and all(len(name) < 170 for name in names)


def test_a_run_of_another_teacher_is_trained_in_a_folder_of_its_own(tmp_path):
    files = [tmp_path / f"{name}.pth" for name in ("first", "second", "later")]
    for path in files[:2]:
        path.write_text(path.stem)
    runs = [planned(tmp_path, "KD", 0, f"DISTILLER.TEACHER_CHECKPOINT={path}") for path in files]
    made = make_run(tmp_path, "KD", 0, 73.0, metadata={"teacher_sha256": sha256(files[0])})
    progress = Progress(find_runs(tmp_path))
    assert [progress.state(run) for run in runs] == [DONE, LEFT, DONE]  # the third file is not there yet
    assert len({run.folder for run in runs}) == 3
    files[0].write_text("other weights")
    runs[0].folder.parent.mkdir()
    made.rename(runs[0].folder)
    assert Progress(find_runs(tmp_path)).state(planned(tmp_path, "KD", 0, runs[0].training.extra[1])) == LEFT


def test_a_finished_run_counts_after_an_edit_of_the_users_file_and_the_plan_says_so(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("first")
    student, metadata = f"{file}:Net", {"own_files": {"net.py": sha256(file)}}
    made = make_run(tmp_path, "KD", 0, 73.0, metadata=metadata, DISTILLER__STUDENT=student)
    run = planned(tmp_path, "KD", 0, f"DISTILLER.STUDENT={student}")
    for text, said in (("first", False), ("second", True)):
        file.write_text(text)
        run.training.__dict__.pop("own_files", None)  # a later sweep
        progress = Progress(find_runs(tmp_path))
        assert progress.state(run) == DONE
        words = summary([run], {run: DONE}, progress, [], 1)
        assert ("finished before you changed your Python files, and not trained again" in words) is said
        assert (str(made) in words) is said


def test_a_run_of_a_users_file_in_another_folder_counts_if_the_file_is_the_same(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("import beside")
    (tmp_path / "beside.py").write_text("")
    same = {"net.py": sha256(file)}  # all that earlier versions recorded
    for recorded, state in (({}, LEFT), ({"net.py": "of another"}, LEFT), ({**same, "beside.py": "of another"}, LEFT),
                            (same, DONE)):
        make_run(tmp_path, "KD", 0, 73.0, metadata={"own_files": recorded}, DISTILLER__STUDENT="elsewhere/net.py:Net")
        run = planned(tmp_path, "KD", 0, f"DISTILLER.STUDENT={file}:Net")
        assert Progress(find_runs(tmp_path)).state(run) == state


def test_a_run_on_a_users_own_data_counts_for_the_same_folder_alone(tmp_path):
    own = ("DATASET.TYPE=imagefolder", "DATASET.ROOT=")
    make_run(tmp_path, "KD", 0, 73.0, DATASET__TYPE="imagefolder", DATASET__ROOT="flowers")
    make_run(tmp_path, "EA-KD", 0, 73.0, DATASET__ROOT="elsewhere")
    progress = Progress(find_runs(tmp_path))
    runs = [planned(tmp_path, "KD", 0, own[0], own[1] + root) for root in ("flowers", "birds")]
    assert [progress.state(run) for run in runs] == [DONE, LEFT] and "DATASET.ROOT-birds" in runs[1].name
    assert progress.state(planned(tmp_path, "EA-KD", 0, "DATASET.ROOT=here")) == DONE  # the same images everywhere


@pytest.mark.parametrize(("status", "state"), [
    ("running", STARTED), ("interrupted", STARTED), ("failed", FAILED), ("done", DONE),
])
def test_the_state_of_a_run_in_its_own_folder(tmp_path, status, state):
    run = planned(tmp_path)
    made = make_run(tmp_path, "KD", 0, 73.0, status=status)
    run.folder.parent.mkdir()
    made.rename(run.folder)
    assert Progress(find_runs(tmp_path)).state(run) == state


def test_a_failure_recorded_by_a_sweep_is_reported(tmp_path):
    run = planned(tmp_path)
    run.record.parent.mkdir(parents=True)
    (run.record.parent / f"{run.record.name}.failed").write_text(json.dumps({"error": "loss ce is not finite"}))
    progress = Progress([])
    assert progress.state(run) == FAILED
    text = summary([run], {run: FAILED}, progress, [], 1)
    assert "1 failed" in text and "again with --retry-failed" in text and "loss ce is not finite" in text


def test_each_of_the_sweeps_that_share_a_folder_at_once_has_a_list_and_a_later_one_deletes_those_of_ended_ones(
        tmp_path):
    first, second, third = (planned(tmp_path, row) for row in ("KD", "DKD", "MLD"))

    def lists():
        return [read_plan(path) for path in sorted(first.record.parent.glob(PLANS))]

    def sweep_of(*runs):
        def sweep():
            with announced(runs, 2):
                pass
        (done,) = forked.run_together([sweep])
        assert done.returncode == 0, done.stderr

    sweep_of(first)
    with announced([second], 1):
        own = {"runs": [second.name], "jobs": 1}
        assert lists() == [own]
        for _ in range(2):  # stopped and started again: its jobs count once
            sweep_of(first, third)
            assert lists() == [own, {"runs": [first.name, third.name], "jobs": 2}]
        sweep_of(third)
        assert lists() == [own, {"runs": [third.name], "jobs": 2}]
    sweep_of(first)
    assert lists() == [{"runs": [first.name], "jobs": 2}]


def test_the_estimate_is_from_finished_runs_of_the_same_configuration(tmp_path):
    make_run(tmp_path, "KD", 0, 73.0)  # 60 seconds
    runs = [planned(tmp_path, "KD", seed) for seed in range(4)] + [planned(tmp_path, "DKD", 0)]
    started = make_run(tmp_path, "KD", 1, 60.0, status="interrupted")
    content = json.loads((started / "summary.json").read_text()) | {"epoch": 60}
    (started / "summary.json").write_text(json.dumps(content))
    runs[1].folder.parent.mkdir(exist_ok=True)
    started.rename(runs[1].folder)
    progress = Progress(find_runs(tmp_path))
    states = {run: progress.state(run) for run in runs}
    todo = [run for run in runs if states[run] != DONE]
    assert [progress.seconds(run) for run in todo] == [45.0, 60.0, 60.0, None]
    assert summary(runs, states, progress, todo, 1).split("\n") == [
        "5 runs of 2 configurations: 1 done, 1 to continue, 3 to start",
        "time: about 3 min for 3 of the 4 left at --jobs 1, by finished runs of the same configurations",
        "time of the other 1: known once a run of each configuration is finished",
    ]
    assert "time: about 55 s for 3 of the 4 left at --jobs 8" in summary(runs, states, progress, todo, 8)


def test_a_finished_run_whose_time_is_not_recorded_gives_no_estimate(tmp_path):
    made = make_run(tmp_path, "KD", 0, 73.0)
    (made / "summary.json").write_text((made / "summary.json").read_text().replace('"wall_seconds": 60.0, ', ""))
    run = planned(tmp_path, "KD", 1)
    progress = Progress(find_runs(tmp_path))
    assert progress.seconds(run) is None
    words = summary([run], {run: LEFT}, progress, [run], 1)
    assert words.endswith("\ntime: known once a run of each configuration is finished")


@pytest.mark.parametrize(("seconds", "text"), [
    (40, "40 s"), (600, "10 min"), (7500, "2 h 5 min"), (3 * 86400 + 4 * 3600, "3 days 4 h"), (172799, "2 days 0 h"),
])
def test_durations_are_shown_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_a_smoke_run_keeps_the_method_and_replaces_data_networks_and_schedule(tmp_path):
    run = planned(tmp_path, "EA-MLD+LS", smoke=True)
    settings = run.training.settings
    assert (settings["DISTILLER.TYPE"], settings["DISTILLER.LS"], settings["KD.TEMPERATURE"]) == ("EA-MLD", True, 2.0)
    assert (settings["DATASET.TYPE"], settings["DISTILLER.STUDENT"]) == ("digits", "resnet8")
    assert run.name == "cifar100_ea_mld_ls_res32x4_res8x4_s0"


def test_every_pair_of_the_paper_has_smoke_networks():
    pairs = {Training.of_cell(cell).pair for cell in choose_cells(covered_tables(["all"]))}
    assert pairs <= SMOKE["pairs"].keys()
    small = [pair for name, pair in SMOKE["pairs"].items() if name not in ("r101_r18", "r50_mv2")]
    assert all(re.match(r"DISTILLER\.\w+=", text) for pair in small for text in pair)


def test_runs_that_may_share_data_and_teacher_are_grouped(tmp_path):
    def groups(*runs, **options):
        tasks = grouped(runs, **options)
        return [[runs.index(run) for run in getattr(task, "runs", (task,))] for task in tasks]

    kd, ea, review = (planned(tmp_path, row) for row in ("KD", "EA-KD", "ReviewKD"))
    assert groups(kd, ea, review) == [[0, 1, 2]]  # other methods, weights, and losses
    assert groups(kd, ea, review, most=2) == [[0, 1], [2]]
    seeds = [planned(tmp_path, "KD", seed) for seed in (0, 1)]
    assert groups(*seeds) == [[0], [1]]  # a seed of its own is one of the data too
    assert groups(*(planned(tmp_path, "KD", seed, "DATASET.SEED=0") for seed in (0, 1))) == [[0, 1]]
    assert groups(planned(tmp_path, "KD", 0), planned(tmp_path, "EA-KD", 1, "DATASET.SEED=0")) == [[0, 1]]
    for apart in ("SOLVER.BATCH_SIZE=32", "SOLVER.EPOCHS=2", "SOLVER.AMP=bf16", "DATASET.AUGMENTATION=crop",
                  "DISTILLER.TEACHER_CHECKPOINT=other.pth", "DATASET.VAL_FRACTION=0.1", "TEACHER_CACHE.ENABLED=True",
                  "SOLVER.ACCUMULATE=2", "SOLVER.MAX_ITER=9", "SOLVER.EVAL_PERIOD=3", "DISTILLER.FOLD_TEACHER=True",
                  "SOLVER.CHANNELS_LAST=False", "DEVICE=cpu", "COMPILE=True", "EXPERIMENT.DETERMINISTIC=False",
                  "EXPERIMENT.PLUGINS=[mine]", "TASK.TYPE=language", "LM.MAX_LENGTH=9", "GENERATION.EXAMPLES=9",
                  "MODEL.CHANNELS=16", "DETECTION.ROI_BATCH=9"):
        assert groups(kd, planned(tmp_path, "EA-KD", 0, apart)) == [[0], [1]], apart
    for same in ("SOLVER.LR=0.1", "EA.KIND=base", "SOLVER.TYPE=AdamW", "LOG.ENTROPY_TRACE=10"):
        assert groups(kd, planned(tmp_path, "EA-KD", 0, same)) == [[0, 1]], same
