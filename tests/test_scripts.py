"""The scripts say what they do when they are asked, and then do nothing else."""

import re
import shutil
import subprocess

import pytest

from mdistiller.runs.language import SPEC
from mdistiller.runs.paper import load_tables
from tests.engine.support import REPOSITORY

SCRIPTS = sorted(path.name for path in (REPOSITORY / "scripts").glob("*.sh") if path.name != "environment.sh")


def run(script, *words, cwd=REPOSITORY):
    """The finished script; without pip, python and the tools in PATH it can neither install nor train."""
    command = ["/bin/bash", REPOSITORY / "scripts" / script, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_prints_the_head_of_a_script_and_does_nothing(script, tmp_path):
    text = (REPOSITORY / "scripts" / script).read_text()
    head = "# Train the runs of one table" if "exec " in text else text.splitlines()[1]  # of the script that it calls
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and list(tmp_path.iterdir()) == []
    assert done.stdout.startswith(head.removeprefix("# ")) and "set -euo" not in done.stdout


@pytest.mark.parametrize(("script", "expected"), [
    ("reproduce.sh", "expected the name of a table"), ("reproduce_language.sh", "expected the name of a table"),
    ("train_teachers.sh", "no name: expected cifar100, tiny_imagenet or digits"),
])
def test_a_script_without_the_word_that_it_needs_says_so_in_one_line(script, expected):
    done = run(script)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and expected in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(("script", "expected"), [
    ("quickstart.sh", "nothing"), ("docs.sh", "--install or nothing"), ("wheel.sh", "--check or nothing"),
])
def test_a_script_refuses_words_that_it_would_ignore(script, expected):
    done = run(script, "--smoke", "--seeds")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --smoke --seeds: expected {expected}\n"


def test_every_table_of_the_paper_has_its_script():
    assert {f"reproduce_table{name}.sh" for name in load_tables()} <= set(SCRIPTS)


def commands_of(folder, script, *words):
    """The words of each `python` that a copy of the scripts in `folder` starts, which does nothing but note them."""
    if not (folder / "scripts").exists():
        shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/bash\necho "$@" >> {folder}/started\n')
        (folder / "bin" / "python").chmod(0o755)
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(["/bin/bash", folder / "scripts" / script, *words], capture_output=True, text=True,
                          env={"PATH": path}, timeout=60)
    started = folder / "started"
    lines = started.read_text().splitlines() if started.exists() else []
    started.unlink(missing_ok=True)
    return done, lines


@pytest.mark.parametrize(("figures", "trained", "measured"), [
    (["2", "B1"], ["kd ea_kd"], ["2 B1"]),
    (["7"], ["dkd ea_dkd"], ["7"]),
    (["8"], ["dkd ea_dkd"] * 2, ["8"]),
    (["3", "7", "8"], ["kd ea_kd dkd ea_dkd", "dkd ea_dkd", "dkd ea_dkd"], ["3 7", "8"]),
    ([], ["kd ea_kd dkd ea_dkd", "dkd ea_dkd", "dkd ea_dkd"], ["1 2 3 4 5 6 7 B1 B2 B3", "8"]),
])
def test_one_command_reproduces_the_figures_that_are_named_and_trains_no_other_runs(
        tmp_path, figures, trained, measured):
    done, lines = commands_of(tmp_path, "reproduce_figures.sh", *(["--figure", *figures] if figures else []), "--smoke")
    assert done.returncode == 0, done.stderr
    sweeps = [line.split() for line in lines if line.startswith("tools/sweep.py")]
    found = [" ".join(word.split("/")[2] for word in words if word.startswith("configs/")) for words in sweeps]
    assert found == trained
    analyses = [line.partition("--figure ")[2].partition(" --runs")[0] for line in lines if "analyze" in line]
    assert analyses == measured
    (drawn,) = [line for line in lines if line.startswith("tools/figures.py")]
    assert f"--figure {' '.join(figures) or '1 2 3 4 5 6 7 8 B1 B2 B3'} --analysis" in drawn


def test_a_figure_that_the_paper_does_not_have_is_named_before_anything_is_trained(tmp_path):
    done, lines = commands_of(tmp_path, "reproduce_figures.sh", "--figure", "2", "9")
    assert (done.returncode, done.stderr, lines) == (2, "error: --figure 9: expected 1 to 8, B1, B2 or B3\n", [])
    done, lines = commands_of(tmp_path, "reproduce_figures.sh", "--figure", "--dry-run")
    assert (done.returncode, done.stderr, lines) == (2, "error: --figure: expected names of figures after it\n", [])


def test_the_runs_of_a_table_of_language_models_answer_the_sets_that_there_are(tmp_path):
    run = tmp_path / "runs" / "sweep" / "dolly_fkl_gpt2_xl_gpt2_s0"
    data = tmp_path / "my data" / "dolly"
    for folder in (run, data):
        folder.mkdir(parents=True)
    for file in (run / "best.pth", data / "test.jsonl", data / "vicuna.jsonl"):
        file.touch()
    words = ("--", "DATASET.ROOT", data.parent, f"LOG.PREFIX={tmp_path / 'runs'}")
    done, lines = commands_of(tmp_path, "reproduce_table7.sh", *words)
    assert done.returncode == 0, done.stderr
    answers = [line for line in lines if line.startswith("tools/answers.py")]
    assert len(answers) == 4 and "--checkpoint teacher" in answers[-1]  # two rules, of the run and of its teacher
    assert all(f"--sets dolly={data}/test.jsonl vicuna={data}/vicuna.jsonl --run {run}" in line for line in answers)
    assert "s_ni_11.jsonl: its column stays empty" in done.stdout


def test_the_script_and_the_table_name_the_same_files_of_the_sets():
    text = (REPOSITORY / "scripts" / "reproduce_language.sh").read_text()
    pairs = re.findall(r"(\w+)=(\w+)(?=[ ;])", text.split("entry in")[1])
    assert {name: f"dolly/{file}.jsonl" for name, file in pairs} == SPEC["files"]
