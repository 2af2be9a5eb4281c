"""A short run of tests/chaos.py, and tests of its comparison.

The runs are forked, which needs a process without threads, unlike that of pytest.
"""

import json
import re

import numpy as np
import pytest
import torch

from tests.chaos import differences
from tests.engine.support import typed


def test_runs_killed_at_random_moments_and_resumed_end_in_the_same_bits(tmp_path):
    done = typed("tests/chaos.py", "--trials", 1, "--jobs", 1, "--methods", "EA-KD", "CRD", "--seed", 466,
                 "--folder", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    total = re.search(r"\| total \|(.*)\|\n", done.stdout)[1].split("|")
    trials, kills, saving, stops, damaged, different = map(int, total)
    assert (trials, different) == (2, 0) and kills >= 2 and saving >= 1, done.stdout  # how many depends on the machine
    assert not any(tmp_path.iterdir()), "nothing is kept of runs that are as they should be"


def write(folder):
    """A small run folder."""
    (folder / "tb").mkdir(parents=True)
    (folder / "tb" / "events").write_text(folder.name)
    (folder / ".latest.pth.killed").write_text("half of it")
    state = {"model": {"w": torch.tensor([1.0, float("nan"), 0.0])}, "best": {"test_top1": 9.5}, "updater": [{"lr": 1}]}
    torch.save({**state, "wall_seconds": hash(folder.name)}, folder / "latest.pth")
    line = json.dumps({"epoch": 1, "test_loss": float("nan"), "seconds": hash(folder.name)}) + "\n"
    (folder / "metrics.jsonl").write_text(2 * line)
    np.savez(folder / "epoch_1.npz", weight=np.ones(3, np.float32))
    return folder, state


def change_model(folder, state):
    state["model"]["w"][2] = -0.0  # equal as a number, another bit
    torch.save(state, folder / "latest.pth")


def change_updater(folder, state):
    torch.save({**state, "updater": [{"lr": 1.0}]}, folder / "latest.pth")


CHANGES = {
    "nothing": (lambda folder, state: None, None),
    "the sign of a zero": (change_model, "latest.pth: .model.w"),
    "a type": (change_updater, r"latest.pth: .updater\[0\].lr int|latest.pth: .updater\[0\].lr float"),
    "half a file": (lambda folder, state: (folder / "latest.pth").write_bytes(b"PK"), "latest.pth: "),
    "a file": (lambda folder, state: (folder / "metrics.jsonl").unlink(), "metrics.jsonl: not there"),
    "a file too many": (lambda folder, state: torch.save({}, folder / "epoch_9.pth"), "epoch_9.pth: unexpected"),
    "a line": (lambda folder, state: (folder / "metrics.jsonl").write_text(
        (folder / "metrics.jsonl").read_text().splitlines()[0]), "metrics.jsonl:  has 1 entries, 2 in the reference"),
    "a bit of an array": (lambda folder, state: np.savez(
        folder / "epoch_1.npz", weight=np.nextafter(np.ones(3, np.float32), 2)), "epoch_1.npz: .weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_names_what_differs(change, tmp_path):
    (one, state), (other, _) = write(tmp_path / "one"), write(tmp_path / "other")
    make, expected = CHANGES[change]
    make(one, state)
    found = differences(one, other)
    assert found == [] if expected is None else len(found) == 1 and re.match(expected, found[0]), found
