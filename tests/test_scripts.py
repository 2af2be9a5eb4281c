"""The scripts say what they do when they are asked, and then do nothing else."""

import subprocess

import pytest

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
