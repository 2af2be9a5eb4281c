"""scripts/gpu_evidence.sh: what it refuses at once, and that what it names exists; --smoke runs all of it on a CPU."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mdistiller.report.study import load_studies

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_evidence.sh"


@pytest.mark.parametrize("words, message", [
    (["--minutes", "soon"], "error: --minutes: expected a whole number above 0; found 'soon'\n"),
    (["--minutes"], "error: --minutes: expected a whole number above 0; found ''\n"),
    (["--hours", "1"], "error: --hours: expected --minutes N, --root FOLDER or --smoke\n"),
])
def test_wrong_arguments_are_refused_in_one_line(words, message):
    done = subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_it_trains_lines_of_the_study():
    lines = load_studies(())["full"].lines
    (chosen,) = re.findall(r"--methods (.*) -- ", SCRIPT.read_text())
    names = shlex.split(chosen)
    assert names == ["student alone", "KD", "EA-KD"] and set(names) <= set(lines)
