"""Tuning on validation images: search spaces computed by hand, and short trials, shared and stopped."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import yaml

from mdistiller import files
from mdistiller.command import Interrupted
from mdistiller.config import load_cfg
from mdistiller.config.loading import method_keys
from mdistiller.data import digits
from mdistiller.distillers import DISTILLERS
from mdistiller.errors import NotFinite, RunError, UserError
from mdistiller.report.tuning import TrialRow, tuning_page
from mdistiller.runs.records import read_run
from mdistiller.runs.training import Training
from mdistiller.sweep import tuning
from mdistiller.sweep.tuning import Setting, Tuning, search_space
from tests import forked
from tests.engine.support import REPOSITORY, SMALL
from tools import tune

pytest.importorskip("optuna", reason="Optuna is not installed")
CONFIG = str(REPOSITORY / "configs/digits/ea_kd/res20_res8.yaml")
TINY = [f"{key}={value}".replace(" ", "") for key, value in zip(SMALL[::2], SMALL[1::2], strict=True)]
TINY += ["DATASET.VAL_FRACTION=0.2", "SOLVER.EPOCHS=2", "SOLVER.LR_DECAY_STAGES=[1]", "DATASET.TRAIN_FRACTION=0.3"]


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    """The digits with 100 test images, since evaluation takes most of the time of these runs."""
    source = digits.read_digits()
    few = dataclasses.replace(source, test_images=source.test_images[:100], test_labels=source.test_labels[:100])
    monkeypatch.setattr(digits, "read_digits", lambda: few)


def tiny(folder, trials, *more, seeds=1):
    return Tuning(CONFIG, [*TINY, f"LOG.PREFIX={folder}", *more], "mine", trials, seeds)


def epochs(folder, number):
    return [row["epoch"] for row in read_run(folder / "tune" / "mine" / f"trial_{number:03}").metrics()]


def test_every_method_declares_keys_that_are_numbers_and_the_scale_of_its_loss():
    keys = method_keys()
    for name, method in DISTILLERS.items():
        if name.removeprefix("EA-") in ("NONE", "SFT"):
            continue
        names = [key if key in keys else f"{method.config_key}.{key}" for key in method.search]
        assert names and all(key in keys for key in names), name
        assert all(isinstance(keys[key].default, float) and keys[key].default for key in names), name
        assert len(search_space(load_cfg(None, ["DISTILLER.TYPE", name]))) == len(names) + method.weighted, name


def test_a_space_is_around_the_configuration_and_within_the_range_of_its_keys():
    cfg = load_cfg(REPOSITORY / "configs/digits/ea_dkd/res20_res8.yaml", ["DKD.BETA", 2.0])
    assert search_space(cfg, ["DKD.ALPHA"]) == {
        "DKD.BETA": Setting(2.0, 0.2, 20.0), "DKD.T": Setting(4.0, 1.0, 16.0),
        "EA.KIND": Setting("ea", choices=("ea", "normalized"))}
    rate = search_space(load_cfg(None, ["DISTILLER.TYPE", "FKL", "TASK.TYPE", "language"]))["FKL.KD_RATE"]
    assert (rate.low, rate.high) == (0.05, 1.0)  # ten times 0.5 is above 1, the most for a share
    with pytest.raises(UserError, match="nothing to tune"):
        search_space(load_cfg(None, ["DISTILLER.TYPE", "NONE"]))


def work(folder, trials, ready, done):
    mine = tiny(folder, trials)
    assert mine.study is not None
    ready.wait(60)
    mine.run_trials()
    done.put(mine.open_trials)


def test_two_processes_share_a_study_and_its_budget(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(2), context.Queue()
    both = [context.Process(target=work, args=(tmp_path, 3, ready, done)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    trials = tiny(tmp_path, 3).study.trials
    assert [trial.number for trial in trials] == [0, 1, 2] and tiny(tmp_path, 3).open_trials == 0
    assert trials[0].params == {"KD.LOSS.KD_WEIGHT": 0.9, "KD.TEMPERATURE": 4.0, "EA.KIND": "ea"}  # its own values
    assert len({trial.params["KD.LOSS.KD_WEIGHT"] for trial in trials}) == 3  # no proposal occurs twice
    for trial in trials:  # and no trial is trained twice
        assert epochs(tmp_path, trial.number) == [1, 2][: 2 if trial.state.name == "COMPLETE" else 1]


def test_a_trial_is_claimed_under_the_lock_of_the_study(tmp_path, monkeypatch):
    mine, tried = tiny(tmp_path, 1), []

    def look(number):
        process = multiprocessing.get_context("fork").Process(target=lock_it)
        process.start()
        process.join()
        tried.append(process.exitcode)

    def lock_it():
        raise SystemExit(files.lock(mine.folder / ".study.lock", inherited=False) is None)

    monkeypatch.setattr(mine, "_lock", look)
    mine._claim()
    assert tried == [1]  # nobody else can have it, also where the claim has made the study first


def test_a_stopped_trial_continues_where_it_stood_and_the_test_images_come_last(tmp_path, monkeypatch, capsys):
    def stopped(cfg, resume, after_epoch):
        def stop(record):
            after_epoch(record)
            if cfg.EXPERIMENT.NAME == "trial_001":
                raise Interrupted(signal.SIGINT)
        return train(cfg, resume, stop)

    train = tuning.train
    monkeypatch.setattr(tuning, "train", stopped)
    words = ["--cfg", CONFIG, "--trials", "2", "--seeds", "1", "--name", "mine", *TINY, f"LOG.PREFIX={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["tune.py", *words])
    with pytest.raises(SystemExit) as end:
        tune.cli()
    assert end.value.code == 130
    assert capsys.readouterr().err == "error: interrupted by SIGINT: saved; the same command continues\n"
    before = tiny(tmp_path, 2).study.trials[1].params
    assert epochs(tmp_path, 1) == [1]
    monkeypatch.setattr(tuning, "train", train)
    tune.main()
    mine = tiny(tmp_path, 2)
    assert mine.study.trials[1].params == before and epochs(tmp_path, 1) == [1, 2] and mine.open_trials == 0
    last = read_run(mine.folder / "trial_000").metrics()[-1]
    assert mine.study.trials[0].value == last["val_top1"] and not [key for key in last if key.startswith("test_")]
    assert (mine.folder / "sensitivity.png").is_file()
    report = (mine.folder / "report.md").read_text()
    assert "2 trials of 2 epochs" in report and "(seeds: 1)" in report
    final = yaml.safe_load((mine.folder / f"best_{mine.study.best_trial.number:03}_s0" / "config.yaml").read_text())
    assert final["EXPERIMENT"]["SEED"] == 0 and final["KD"]["TEMPERATURE"] == mine.best()["KD.TEMPERATURE"]
    tried = [yaml.safe_load((mine.folder / f"trial_{number:03}" / "config.yaml").read_text()) for number in (0, 1)]
    assert [cfg["EXPERIMENT"]["SEED"] for cfg in tried] == [1000, 1000]  # one seed, which no final run has
    assert final["DATASET"]["VAL_FRACTION"] == 0.2 and "all training images" not in report  # the file's own fraction
    with pytest.raises(UserError, match="other settings"):
        assert tiny(tmp_path, 2, "SOLVER.LR=0.01").study


@pytest.mark.parametrize("error, state", [(NotFinite, "FAIL"), (RunError, "RUNNING")])
def test_a_trial_fails_by_its_settings_and_not_by_a_full_disk(error, state, tmp_path, monkeypatch):
    def ends(*_):
        raise error("latest.pth: cannot be written: No space left on device")

    monkeypatch.setattr(tuning, "train", ends)
    mine = tiny(tmp_path, 1)
    with contextlib.nullcontext() if error is NotFinite else pytest.raises(RunError, match="No space left"):
        mine.run_trials()
    assert [trial.state.name for trial in mine.study.trials] == [state]


def test_a_study_continues_after_every_change_that_a_run_accepts(tmp_path):
    begun = tiny(tmp_path / "a", 2)
    begun._claim()[1].close()
    text, space = json.loads(begun.study.user_attrs["settings"])
    older = yaml.safe_load(text)
    assert older["KD"].pop("TEMPERATURE") == 4.0  # as if a later version had added this key
    begun.study.set_user_attr("settings", json.dumps([yaml.safe_dump(older), space]))
    other = {"EXPERIMENT.PROJECT": "x", "EXPERIMENT.NAME": "x", "EXPERIMENT.TAG": "x", "DEVICE": "cpu",
             "LOG.TENSORBOARD_FREQ": 7, "LOG.SAVE_CHECKPOINT_STEPS": 7, "DATASET.ROOT": "x", "DATASET.NUM_WORKERS": 1,
             "DATASET.DOWNLOAD": True, "DATASET.TEST.BATCH_SIZE": 7, "TEACHER_CACHE.DIR": "x", "TEACHER_CACHE.CHECK": 7,
             "SOLVER.CUDA_GRAPH": "never"}
    assert other.keys() | {"LOG.PREFIX"} == tuning.FREE
    (tmp_path / "b/tune").mkdir(parents=True)
    begun.folder.rename(tmp_path / "b/tune/renamed")
    changes = [f"LOG.PREFIX={tmp_path / 'b'}", *(f"{key}={value}" for key, value in other.items())]
    now = Tuning(CONFIG, [*TINY, *changes], "renamed", 2, 1)
    assert [trial.state.name for trial in now.study.trials] == ["RUNNING"]
    differing = Tuning(CONFIG, [*TINY, *changes, "KD.LOSS.KD_WEIGHT=0.5"], "renamed", 2, 1)
    with pytest.raises(UserError, match=r"other settings: KD.LOSS.KD_WEIGHT \(0.9 there, 0.5 now\); choose another"):
        assert differing.study
    fixed = Tuning(CONFIG, [*TINY, *changes, "KD.LOSS.KD_WEIGHT=0.9"], "renamed", 2, 1)
    with pytest.raises(UserError, match=r"KD.LOSS.KD_WEIGHT \('0.09 to 9, logarithmic' there, 'not varied' now\);"):
        assert fixed.study


def test_a_study_goes_on_with_its_teacher_from_another_place_and_with_no_other_one(tmp_path):
    def study(name):
        return tiny(tmp_path, 1, f"DISTILLER.TEACHER_CHECKPOINT={tmp_path / name}").study

    for name, content in (("t.pth", b"one"), ("same.pth", b"one"), ("other.pth", b"two")):
        (tmp_path / name).write_bytes(content)
    assert study("t.pth").user_attrs == study("same.pth").user_attrs
    with pytest.raises(UserError, match="has another teacher: teacher_sha256 .* there, .* now; restore"):
        study("other.pth")
    with pytest.raises(UserError, match="other settings: DISTILLER.TEACHER_CHECKPOINT .*, 'random' now"):
        assert tiny(tmp_path, 1).study
    with pytest.raises(UserError, match="other settings: DISTILLER.TEACHER_CHECKPOINT .*/missing.pth' now"):
        study("missing.pth")  # what is not known by a SHA-256, like a library's weights, is known by its name
    study("t.pth").set_user_attr("teacher_sha256", None)  # as in a study of an older version
    assert study("t.pth").user_attrs
    with pytest.raises(UserError, match="other settings: DISTILLER.TEACHER_CHECKPOINT .*/other.pth' now"):
        study("other.pth")


def test_a_study_does_not_go_on_with_an_edited_file_of_the_user(tmp_path):
    (tmp_path / "other").mkdir()
    edited = "net.py has changed since the study there was begun; restore it, or"
    for place, text, refused in (("net.py", "first", ""), ("other/net.py", "first", ""), ("net.py", "second", edited),
                                 ("other/net.py", "second", "other settings: DISTILLER.STUDENT")):
        (tmp_path / place).write_text(text)
        tuning = tiny(tmp_path, 1, f"DISTILLER.STUDENT={tmp_path / place}:Net")
        if not refused:
            assert list(tuning.study.user_attrs["own_files"]) == ["net.py"]
            continue
        with pytest.raises(UserError, match=refused):
            assert tuning.study


def test_a_study_whose_runs_were_copied_without_checkpoints_is_reported_and_trains_nothing_again(tmp_path):
    mine = tiny(tmp_path, 1)
    mine.run_trials()
    values = mine.run_final()["best"][0].metrics()
    for path in mine.folder.rglob("*.pth"):
        path.unlink()
    copied = tiny(tmp_path, 1)
    assert copied.run_final()["best"][0].metrics() == values
    config = mine.folder / "best_000_s0" / "config.yaml"
    config.write_text(config.read_text().replace("TEMPERATURE: 4.0", "TEMPERATURE: 5.0"))
    with pytest.raises(UserError, match="other settings: KD.TEMPERATURE"):  # of another machine's study, perhaps
        copied.run_final()


def test_a_journal_that_lost_a_trial_whose_folder_is_there_is_named(tmp_path):
    mine = tiny(tmp_path, 2)
    trial, lock = mine._claim()
    lock.close()
    (mine.folder / "trial_000").mkdir()
    (mine.folder / "trial_000/config.yaml").write_text("")
    with pytest.raises(UserError, match="journal.log: lacks what it held of trial_000, whose .* another --name"):
        mine._run_trial(trial)  # its settings were in the lines that were lost
    (mine.folder / tuning.JOURNAL).write_text("")
    with pytest.raises(UserError, match="journal.log: lacks what it held of trial_000, whose .* another --name"):
        assert tiny(tmp_path, 2).study


def test_the_best_settings_of_a_line_of_a_study_are_kept_with_their_report(tmp_path, monkeypatch):
    line = SimpleNamespace(training=Training(CONFIG, tuple(TINY)), tuned=tmp_path / "results" / "ea_kd.yaml")
    studies = {"fair": SimpleNamespace(lines={"EA-KD": line})}
    monkeypatch.setattr("mdistiller.report.study.load_studies", lambda *_, **__: studies)
    monkeypatch.setattr("sys.argv", ["tune.py", "--study", "fair", "--trials", "1", f"LOG.PREFIX={tmp_path}"])
    tune.main()
    text = line.tuned.read_text()
    assert yaml.safe_load(text) == {"KD.LOSS.KD_WEIGHT": 0.9, "KD.TEMPERATURE": 4.0, "EA.KIND": "ea"}
    assert "# Best trial: 0" in text and "Not looked at" in text and "1 trial of 2 epochs" in text


def test_where_the_best_settings_are_the_configurations_own_they_are_trained_once(tmp_path):
    mine = tiny(tmp_path, 1)
    mine.run_trials()
    runs = mine.run_final()
    assert list(runs) == ["best"] and len(runs["best"]) == 1
    assert {path.name for path in mine.folder.glob("*_*") if path.is_dir()} == {"trial_000", "best_000_s0"}
    final = {label: {run.seed: 21.0 for run in found} for label, found in runs.items()}
    page = tuning_page("KD", "1 trial", {}, [TrialRow(0, {}, 50.0, "complete")], final)
    assert "The best settings are the configuration's own: 21.00 (seeds: 1)." in page


def test_the_lock_of_a_killed_process_that_was_copied_along_is_not_waited_for(tmp_path):
    mine = tiny(tmp_path, 1)
    mine._claim()[1].close()
    for name in (f"{tuning.JOURNAL}.lock", ".journal.lock"):
        (mine.folder / name).unlink(missing_ok=True)
    (mine.folder / f"{tuning.JOURNAL}.lock").symlink_to("/laptop/tune/mine/journal.log")  # as Optuna's own
    (mine.folder / ".journal.lock").write_text("")
    assert len(tiny(tmp_path, 1).study.trials) == 1


def test_where_the_file_system_has_no_locks_the_log_says_so_once(tmp_path, monkeypatch, caplog):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(files, "WITHOUT_LOCKS", set())
    lock = tuning.JournalLock(tmp_path / "lock")
    for _ in range(3):
        assert lock.acquire()
        lock.release()
    assert caplog.text.count("this file system has no locks") == 1


def test_a_line_that_a_process_left_half_written_costs_that_line_alone(tmp_path):
    mine = tiny(tmp_path, 3)
    trial, lock = mine._claim()
    with lock:
        mine.study.tell(trial, 5.0)
    journal = mine.folder / tuning.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    again = tiny(tmp_path, 3)
    assert [trial.value for trial in again.study.trials] == [5.0]
    assert all(json.loads(line) for line in journal.read_bytes().removeprefix(whole).splitlines())
    again._claim()[1].close()
    assert len(tiny(tmp_path, 3).study.trials) == 2


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff", b'{"op_code": 99}', b'{"op_code": 0}', b"[" * 100_000],
                         ids=lambda line: line[:20].decode(errors="replace"))
def test_a_damaged_journal_is_one_line_and_stays_as_it_is(damage, tmp_path):
    mine = tiny(tmp_path, 3)
    journal = mine.folder / tuning.JOURNAL
    assert mine.study.trials
    journal.write_bytes(journal.read_bytes() + damage + b"\n" + damage + b"\n")
    before = journal.read_bytes()
    with pytest.raises(UserError, match="journal.log: not the journal of a study .*choose another --name"):
        assert tiny(tmp_path, 3).study
    assert journal.read_bytes() == before


def test_what_is_no_folder_or_file_of_a_study_is_refused_without_waiting_for_it(tmp_path):
    mine = tiny(tmp_path, 3)
    mine.folder.parent.mkdir(parents=True)
    mine.folder.write_text("a file")
    with pytest.raises(UserError, match="mine: cannot be written: File exists"):
        assert mine.study
    mine.folder.unlink()
    mine.folder.mkdir()
    for name in (tuning.JOURNAL, ".study.lock"):  # pipes, of which a reader or a writer would wait for the other
        (mine.folder / name).unlink(missing_ok=True)
        os.mkfifo(mine.folder / name)
        with pytest.raises(UserError, match=f"{name}: cannot be written: "):
            assert tiny(tmp_path, 3).study
        (mine.folder / name).unlink()


def test_a_study_that_another_process_holds_is_waited_for_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    mine = tiny(tmp_path, 3)

    def other():
        with pytest.raises(UserError, match="another process has held .*study.lock for 0.1 seconds; continue or end"):
            assert tiny(tmp_path, 3).study

    with mine.alone():
        (done,) = forked.run_together([other])
    assert done.returncode == 0, done.stderr


def test_the_report_has_the_gain_on_the_test_images_with_its_test():
    trials = [TrialRow(0, {"KD.T": 4.0}, 50.0, "complete"), TrialRow(1, {"KD.T": 2.0}, 60.0, "complete"),
              TrialRow(2, {"KD.T": 9.0}, 70.0, "pruned"), TrialRow(3, {"KD.T": 1.0}, None, "fail")]
    final = {"best": {0: 21.0, 1: 24.0, 2: 27.0}, "own": {0: 20.0, 1: 22.0, 2: 24.0}}
    text = tuning_page("KD", "4 trials", {"KD.T": ("4.0", "1 to 16")}, trials, final)
    assert "| KD.T | 4.0 | 1 to 16 | 2 |" in text and "Best trial: 1, 60.00" in text
    # differences 1, 2, 3: mean 2, t = 2 sqrt(3), p = 0.0742; of 8 choices of signs, 2 are as far from 0
    assert "Gain: +2.00 (95 % interval -0.48 to +4.48, p 0.074, exact sign-flip p 0.2500)" in text
    assert "| 2 | 9 | 70.00 | pruned |" in text and "| 3 | 1 |  | fail |" in text
    same = tuning_page("KD", "", {"KD.T": ("4.0", "1 to 16")}, trials, {"best": final["own"], "own": final["own"]})
    assert "the configuration's own: 22.00 ± 2.00 (seeds: 3). Gain: +0.00" in same  # other settings, equal results
    assert math.isclose(sum(final["own"].values()) / 3, 22) and "22.00 ± 2.00 (seeds: 3)" in text
    many = {"best": {seed: 20.0 + seed for seed in range(21)}, "own": dict.fromkeys(range(21), 20.0)}
    text = tuning_page("KD", "", {"KD.T": ("4.0", "1 to 16")}, trials, many)
    assert "p < 0.001)." in text and "sign-flip" not in text  # too many signs for the exact test


@pytest.mark.parametrize(("words", "message"), [
    (["--cfg", CONFIG, "--trials", "0"], "--trials: expected a number of trials, at least 1; found 0"),
    (["--cfg", CONFIG, "--name", ".."], "--name: expected the name of a folder; found .."),
    (["--cfg", CONFIG, "--name", "../other"], "--name: expected the name of a folder; found ../other"),
    (["--cfg", CONFIG, "--methods", "KD"], "--methods: of --study"),
    (["--study", "small", "--name", "x"], "--name: of --cfg"),
    (["--study", "small", "--methods", "KD"], "--study small: has no line that is tuned"),
    (["--study", "fair", "--methods", "EA-KD, normalised"], "unknown line of .* nearest: EA-KD, normalized; "),
    (["--study", "fair", "--seeds", "6"], "--seeds: of --cfg; tools/sweep.py --study"),
])
def test_wrong_arguments_are_refused_in_one_line(words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tune.py", *words])
    with pytest.raises(UserError, match=message):
        tune.main()


def test_without_optuna_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    monkeypatch.setattr("sys.argv", ["tune.py", "--cfg", CONFIG])
    with pytest.raises(UserError, match=r"tuning needs optuna: pip install 'mdistiller-ea\[tune\]'"):
        tune.main()
