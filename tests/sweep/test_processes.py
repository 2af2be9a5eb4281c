"""Sweeps on digits with the smallest networks: stopped, killed, continued, and several at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from mdistiller.command import Interrupted
from mdistiller.errors import RunError, UserError
from mdistiller.sweep import cluster
from mdistiller.sweep import processes as sweep
from tools import sweep as tool

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = """\
_BASE_: {base}
DISTILLER: {{TEACHER: resnet8, TEACHER_CHECKPOINT: random}}
SOLVER: {{EPOCHS: {epochs}, LR_DECAY_STAGES: [], BATCH_SIZE: 100}}
DATASET: {{TRAIN_FRACTION: 0.4, TEST: {{BATCH_SIZE: 500}}}}
DEVICE: cpu
"""


def start(folder, seeds, *words, epochs=1):
    """A sweep of a tiny configuration, with the process group that its runs are in."""
    config = Path(folder) / "tiny.yaml"
    config.write_text(TINY.format(base=REPOSITORY / "configs/digits/kd/res20_res8.yaml", epochs=epochs))
    return subprocess.Popen(
        [sys.executable, "tools/sweep.py", "--cfg", config, *words, "--seeds", str(seeds), f"LOG.PREFIX={folder}/out"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def ended(folder):
    """{seed: (status, number of starts)} of the runs that have a summary."""
    found = {}
    for path in folder.glob("out/sweep/*/summary.json"):
        record = json.loads((path.parent / "run.json").read_text())
        found[record["seed"]] = json.loads(path.read_text())["status"], len(record["sessions"])
    return found


def wait_until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["with its runs", "alone"])
def test_a_killed_sweep_started_again_finishes_without_repeating_a_finished_run(tmp_path, alone):
    words = () if alone else ("--fork",)
    killed = start(tmp_path, 3, "--jobs", "1", *words)
    with killed.stdout, killed.stderr:
        wait_until(lambda: ended(tmp_path).get(0) == ("done", 1) and list(tmp_path.glob("out/sweep/*_s1/run.json")))
        killed.kill() if alone else os.killpg(killed.pid, signal.SIGKILL)  # alone: seed 1 continues
        killed.wait()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/sweep/*_s0/*") if path.is_file()}
    assert {"config.yaml", "run.json", "summary.json", "latest.pth"} <= {path.name for path in first}

    code, out, error = finish(start(tmp_path, 3, *words))
    assert (code, error) == (0, "") and "3 runs of 1 configuration: 1 done, 1 to continue, 1 to start" in out
    assert first == {path: path.stat().st_mtime_ns for path in first}
    everything = {0: ("done", 1), 1: ("done", 1 if alone else 2), 2: ("done", 1)}
    assert ended(tmp_path) == everything

    code, out, _ = finish(start(tmp_path, 3, *words))
    assert (code, out) == (0, "3 runs of 1 configuration: 3 done\nnothing left to do\n")
    assert ended(tmp_path) == everything


def test_a_closed_terminal_ends_a_sweep_with_the_exit_code_of_an_interrupted_run(tmp_path, monkeypatch, capsys):
    def closed(*args):
        raise Interrupted(signal.SIGHUP)

    monkeypatch.setattr(tool, "launch", closed)
    words = ["sweep.py", "--cfg", "configs/digits/kd/res20_res8.yaml", f"LOG.PREFIX={tmp_path}"]
    monkeypatch.setattr(sys, "argv", words)
    assert tool.main() == 143 and "stopped by SIGHUP; the same command continues" in capsys.readouterr().err


@pytest.mark.slow
def test_two_sweeps_share_the_work_and_no_run_is_made_twice(tmp_path):
    both = [start(tmp_path, 3, "--jobs", "1", "--fork") for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert ended(tmp_path) == {seed: ("done", 1) for seed in range(3)}


def test_a_sweep_that_is_told_to_stop_lets_its_runs_save_and_continues(tmp_path):
    process = start(tmp_path, 1, "--fork", epochs=8)
    wait_until(lambda: list(tmp_path.glob("out/sweep/*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    code, out, error = finish(process)
    assert (code, error) == (143, "stopped by SIGTERM; the same command continues\n") and "stopped: " in out
    assert ended(tmp_path) == {0: ("interrupted", 1)}
    process = start(tmp_path, 1, "--fork", epochs=8)
    wait_until(lambda: ended(tmp_path) == {0: ("running", 2)})
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal, which the sweep and its runs all get
    assert finish(process)[0] == 130 and ended(tmp_path) == {0: ("interrupted", 2)}


@pytest.mark.parametrize("outcome, words", [
    (sweep.Outcome(sweep.STOPPED), "stopped: a: the same command continues it"),
    (sweep.Outcome(sweep.ELSEWHERE, "its lock is held"), "elsewhere: a: its lock is held"),
])
def test_a_run_that_somebody_else_has_or_has_stopped_is_not_done(outcome, words, tmp_path, capsys):
    reporter = tool.Reporter(1)
    reporter.report(SimpleNamespace(name="a", folder=tmp_path / "not made yet"), outcome)
    assert reporter.end(0) == 3
    assert capsys.readouterr().out == f"[1/1] {words}\n0 of 1 done; 1 not\n"


@dataclass(frozen=True)
class Task:
    """A command in place of a training."""

    name: str
    folder: Path
    command: list[str] = field(hash=False)

    @property
    def record(self):
        return self.folder / self.name


def python(folder, name, code):
    return Task(name, folder, ["-c", code])


def sweep_of(tasks, jobs=2, is_done=lambda task: False):
    """What a sweep tells: the names of runs that it waits for, then each run and how it ended."""
    told = []
    sweep.LocalSweep(tasks, jobs, [], is_done, lambda task, result: told.append((task.name, result)),
                     waits=lambda runs: told.append([run.name for run in runs])).run()
    return told


def test_a_failed_run_is_reported_recorded_and_kept_while_the_others_continue(tmp_path):
    bad = python(tmp_path, "bad", "import sys; print('loss ce is not finite'); sys.exit(3)")
    told = dict(sweep_of([bad, python(tmp_path, "good", "print(1)")]))
    assert told["good"] == sweep.Outcome(sweep.DONE)
    assert told["bad"].kind == sweep.FAILED and told["bad"].error.startswith("loss ce is not finite (exit code 3; ")
    assert json.loads((tmp_path / "bad.failed").read_text())["error"] == told["bad"].error
    assert (tmp_path / "bad.log").read_text() == "loss ce is not finite\n"
    assert dict(sweep_of([python(tmp_path, "bad", "pass")])) == {"bad": sweep.Outcome(sweep.DONE)}
    assert not (tmp_path / "bad.failed").exists()


SAVES = """import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 143))
pathlib.Path('{folder}', 'begun').touch()
time.sleep(60)"""


def test_a_sweep_that_cannot_go_on_leaves_no_run_behind(tmp_path, monkeypatch):
    """A full disk, say, does not take the message of the run that it made fail; the sweep has nobody to tell then."""
    def full(path, text):
        wait_until((tmp_path / "begun").exists)
        raise RunError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(sweep.files, "write_text", full)
    tasks = [python(tmp_path, "bad", "raise SystemExit(3)"), python(tmp_path, "other", SAVES.format(folder=tmp_path))]
    with pytest.raises(RunError, match="bad.failed: cannot be written: No space left"):
        sweep_of(tasks)
    assert (tmp_path / "other.log").read_text() == "saved\n" and sweep.take_lock(tmp_path / "other") is not None


def test_a_run_that_was_told_to_stop_is_not_told_again(tmp_path, monkeypatch):
    """It would end without saving. A closed terminal takes no line about the first run that has ended."""
    def closed(task, result):
        (tmp_path / "told").touch()
        raise OSError(errno.EIO, "Input/output error")

    sent, send = [], subprocess.Popen.send_signal
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda run, number: sent.append(number) or send(run, number))
    begin = f"import os, pathlib, signal, time; folder = pathlib.Path('{tmp_path}')\n"
    first = begin + "while not (folder / 'begun').exists(): time.sleep(0.01)\n"
    first += f"os.kill({os.getpid()}, signal.SIGHUP)\ntime.sleep(60)"
    second = begin + "signal.signal(signal.SIGHUP, lambda *_: None)\n(folder / 'begun').touch()\n"
    second += "while not (folder / 'told').exists(): time.sleep(0.01)"
    tasks = [python(tmp_path, "first", first), python(tmp_path, "second", second)]
    with pytest.raises(OSError, match="Input/output error"):
        sweep.LocalSweep(tasks, 2, [], lambda task: False, closed).run()
    assert sent == [signal.SIGHUP] * 2


def test_a_run_that_ctrl_c_meets_while_python_starts_has_not_failed(tmp_path):
    """Python ends with the exit code of a bug then, and the traceback of a KeyboardInterrupt."""
    code = f"import os, signal; signal.signal(2, signal.SIG_IGN); os.kill({os.getpid()}, 2); raise SystemExit(1)"
    told = []
    with pytest.raises(Interrupted):
        sweep.LocalSweep([python(tmp_path, "run", code)], 1, [], lambda task: False,
                         lambda task, result: told.append(result)).run()
    assert told == [sweep.Outcome(sweep.STOPPED)] and not list(tmp_path.glob("*.failed"))


def test_a_signal_that_meets_a_run_just_forked_is_not_lost(tmp_path, monkeypatch):
    """A forked process has the handlers of the sweep at first, which only take notes."""
    def run(task, device, blocked):
        wait_until((tmp_path / "sent").exists)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return 0

    monkeypatch.setattr(sweep, "_run_here", run)
    with sweep.Signals():
        process = sweep.ForkedRun(python(tmp_path, "run", ""))
        process.send_signal(signal.SIGTERM)
        (tmp_path / "sent").touch()
        wait_until(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGTERM


def test_a_sweep_stops_when_runs_are_refused_for_the_same_reason(tmp_path):
    tasks = [python(tmp_path, f"{n}", "import sys; print('error: no data'); sys.exit(2)") for n in range(20)]
    told = sweep_of(tasks, jobs=1)
    assert [(name, result.kind) for name, result in told] == [("0", sweep.REFUSED), ("1", sweep.REFUSED)]
    assert not list(tmp_path.glob("*.failed")), "the user can put it right: nothing to retry"


@pytest.mark.parametrize(("code", "kind"), [
    (0, sweep.DONE), (1, sweep.FAILED), (2, sweep.REFUSED), (3, sweep.FAILED), (-9, sweep.FAILED), (-11, sweep.FAILED),
    (130, sweep.STOPPED), (143, sweep.STOPPED), (-15, sweep.STOPPED), (-2, sweep.STOPPED),
])
def test_exit_codes_give_the_status_of_a_run(tmp_path, code, kind):
    assert sweep.outcome(python(tmp_path, "x", ""), code).kind == kind


def test_a_lock_has_one_holder_until_its_process_ends(tmp_path):
    lock = sweep.take_lock(tmp_path / "run")
    assert sweep.take_lock(tmp_path / "run") is None
    process = sweep.start(python(tmp_path, "run", "import sys, time; time.sleep(1)"), lock)
    lock.close()  # as if the sweep were killed
    assert sweep.take_lock(tmp_path / "run") is None
    process.wait()
    again = sweep.take_lock(tmp_path / "run")
    assert again is not None
    again.close()


def test_a_run_that_another_sweep_has_is_waited_for_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ELSEWHERE_SECONDS", 0.05)
    held = sweep.take_lock(tmp_path / "run")
    looks = []

    def is_done(task):
        looks.append(task.name)
        return True

    wait = sweep.take_lock

    def take(record):
        if len(waits) == 3:
            held.close()
        waits.append(record)
        return wait(record)

    waits = []
    monkeypatch.setattr(sweep, "take_lock", take)
    assert sweep_of([python(tmp_path, "run", "raise SystemExit(3)")], is_done=is_done) == [
        ["run"], ("run", sweep.Outcome(sweep.ELSEWHERE))]
    assert len(waits) >= 4 and looks == ["run"]


@dataclass(frozen=True)
class Group:
    """Runs in one process, which `command` stands for."""

    runs: tuple[Task, ...]
    command: list[str] = field(hash=False)
    orders = ()
    record = property(lambda self: Path(f"{self.runs[0].record}.together"))


def test_each_run_of_a_group_has_its_own_end_its_own_lock_and_its_own_record(tmp_path):
    runs = [python(tmp_path, name, "raise SystemExit(9)") for name in ("good", "bad", "done", "lost")]
    code = "from pathlib import Path\nfor name, code in (('good', 0), ('bad', 3)):\n"
    code += f"    Path('{tmp_path}', name + '.code').write_text(str(code))\n"
    code += f"    Path('{tmp_path}', name + '.log').write_text('loss of ' + name)\nraise SystemExit('no memory')"
    (tmp_path / "lost.code").write_text("0")  # of a sweep that was killed
    told = dict(sweep_of([Group(tuple(runs), ["-c", code])], is_done=lambda run: run.name == "done"))
    assert told["good"] == sweep.Outcome(sweep.DONE) and told["done"].kind == sweep.ELSEWHERE
    assert told["bad"].kind == sweep.FAILED and told["bad"].error.startswith("loss of bad (exit code 3; ")
    assert told["lost"].kind == sweep.FAILED and told["lost"].error.startswith("no memory (exit code 1; ")
    assert (tmp_path / "lost.failed").is_file() and not list(tmp_path.glob("*.code"))
    assert all(sweep.take_lock(run.record) for run in runs)


@pytest.mark.slow
def test_a_group_in_an_interpreter_of_its_own(tmp_path):
    code, out, error = finish(start(tmp_path, 2, "--together", "DATASET.SEED=0"))
    assert (code, error) == (0, "") and out.endswith("2 of 2 done\n")
    assert ended(tmp_path) == {seed: ("done", 1) for seed in (0, 1)} and list(tmp_path.glob("out/.sweep/*/*.json"))


def test_a_signal_that_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with sweep.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_devices_are_given_in_turn(tmp_path, monkeypatch):
    code = "import os, time; time.sleep(0.2); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [python(tmp_path, name, code) for name in "abcd"]
    sweep.LocalSweep(tasks, 2, ["4", "7"], lambda task: False, lambda task, result: None).run()
    assert sorted((tmp_path / f"{name}.log").read_text().strip() for name in "abcd") == ["4", "4", "7", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert sweep.local_devices() == ["4", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.local_devices() == []


@pytest.mark.parametrize(("lines", "devices"), [
    ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 3g.20gb  Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA A100 (UUID: GPU-3)",
     ["0", "1"]),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", []),
])
def test_without_a_choice_devices_are_those_that_nvidia_smi_numbers(lines, devices, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep.local_devices() == devices


def test_jobs_of_a_cluster_by_submitits_local_executor(tmp_path):
    pytest.importorskip("submitit")
    tasks = [python(tmp_path, "good", "print(1)"), python(tmp_path, "bad", "print('no'); raise SystemExit(3)")]
    told = {}
    cluster.run_submitted(tasks, 2, "local", tmp_path / "jobs", {"timeout_min": 5},
                        lambda task, result: told.update({task.name: result.kind}))
    assert told == {"good": sweep.DONE, "bad": sweep.FAILED}
    lock = sweep.take_lock(tmp_path / "good")  # released at the end
    assert cluster.SubmittedRun()(tasks[0]).kind == sweep.ELSEWHERE
    lock.close()
    assert (tmp_path / "bad.failed").is_file()
    stopped = python(tmp_path, "bad", "raise SystemExit(143)")  # the second attempt, which the same command continues
    assert cluster.SubmittedRun()(stopped).kind == sweep.STOPPED and not (tmp_path / "bad.failed").exists()


def test_without_submitit_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'mdistiller-ea\[slurm\]'"):
        cluster.submitit()


def test_a_missing_slurm_and_an_unknown_option_are_reported(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--launcher slurm: "):
        cluster.run_submitted([], 1, "slurm", tmp_path, {}, print)
    with pytest.raises(UserError, match="--launcher slurm: .*speed"):
        cluster.run_submitted([], 1, "local", tmp_path, {"speed": 9}, print)


def test_the_plan_is_printed_and_nothing_started(tmp_path):
    code, out, error = finish(start(tmp_path, 2, "--dry-run"))
    assert (code, error) == (0, "") and not (tmp_path / "out").exists()
    assert out.startswith("2 runs of 1 configuration: 2 to start\n")
    assert out.count("\npython tools/train.py --cfg ") == 2
    code, _, error = finish(start(tmp_path, 2, "--methods", "KD"))
    assert code == 2 and error.count("\n") == 1 and "--methods and --pairs choose cells of --table" in error
