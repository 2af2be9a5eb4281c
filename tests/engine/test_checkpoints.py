"""Checkpoint files: what is read, what is refused, and what a failed write leaves behind."""

import argparse
import os
import pickle

import pytest
import torch

from mdistiller import files
from mdistiller.engine import checkpoints
from mdistiller.errors import RunError, UserError
from mdistiller.models import build_model


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("resnet8", 10)


def load_into_another(path):
    other = build_model("resnet8", 10)
    checkpoints.load_network(other, path, "resnet8")
    return other.state_dict()


FORMS = {  # how the project, mdistiller and the public archives keep a network
    "a bare state dict": lambda state: dict(state),
    "the teacher archives": lambda state: {
        "model": dict(state), "epoch": 240, "accuracy": torch.tensor(72.34), "opt": argparse.Namespace(lr=0.05),
    },
    "mdistiller's latest": lambda state: {
        "epoch": 3, "best_acc": 70.1,
        "model": {f"module.student.{k}": v for k, v in state.items()} | {"module.teacher.fc.weight": torch.zeros(1)},
    },
    "one without batch counters": lambda state: {"model": {k: v for k, v in state.items() if "num_batches" not in k}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_found_in_every_known_form_of_checkpoint(form, network, tmp_path):
    torch.save(FORMS[form](network.state_dict()), tmp_path / "file.pth")
    loaded = load_into_another(tmp_path / "file.pth")
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "old.pth"):
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            checkpoints.load(name)
    assert not (tmp_path / "harmed").exists()


def test_what_does_not_fit_is_named(network, tmp_path):
    torch.save({"model": network.state_dict()}, tmp_path / "ten.pth")
    with pytest.raises(UserError, match=r"fc\.(weight|bias) is \(10.* in the file and \(100.* in the network"):
        checkpoints.load_network(build_model("resnet8", 100), tmp_path / "ten.pth", "resnet8 with 100 classes")
    with pytest.raises(UserError, match="keys missing"):
        checkpoints.load_network(build_model("resnet14", 10), tmp_path / "ten.pth", "resnet14")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "latest.pth"
    checkpoints.save({"epoch": 1}, path)

    def full(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="latest.pth: cannot be written: No space left on device"):
        files.write_atomically(path, full)
    assert checkpoints.load(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest.pth"]


def test_files_have_ordinary_permissions(tmp_path):
    checkpoints.save({"epoch": 1}, tmp_path / "a.pth")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.pth").stat().st_mode == (tmp_path / "b").stat().st_mode
