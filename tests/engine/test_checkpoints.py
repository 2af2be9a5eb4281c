"""Checkpoint files: accepted and refused content, and failed writes."""

import argparse
import errno
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mdistiller import files
from mdistiller.engine import checkpoints
from mdistiller.engine.pickles import count_objects
from mdistiller.engine.weights import fitting_state
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


def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "old.pth"):
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            checkpoints.load(name)
    assert not (tmp_path / "harmed").exists()


def test_keys_and_shapes_that_do_not_fit_are_named(network, tmp_path):
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


def test_a_text_without_utf8_is_written_with_escapes(tmp_path):
    files.write_text(tmp_path / "a.csv", "run,\ud800,\xb1\n")  # as a key of damaged metrics or a name of other bytes
    assert (tmp_path / "a.csv").read_bytes() == b"run,\\ud800,\xc2\xb1\n"


def test_a_file_system_without_permissions_will_do(tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refused)
    checkpoints.save({"epoch": 1}, tmp_path / "a.pth")
    assert checkpoints.load(tmp_path / "a.pth") == {"epoch": 1}


def scaled(state, factor=2.0):
    return {key: value * factor if value.is_floating_point() else value for key, value in state.items()}


EVERYDAY = {  # usual forms of checkpoints: the entry that contains the network, and the prefix of its names
    "a training loop": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}},
    "kuangliu's": lambda state: {"net": state, "acc": 93.0, "epoch": 3},
    "Lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    "DistributedDataParallel and torch.compile": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
    "a name of one's own": lambda state: {"result": {"teacher_weights": state}, "args": {"lr": 0.1}},
    "averaged weights alone": lambda state: {"model_ema": state},
    "averaged weights of another kind": lambda state: {"swa": {"model": scaled(state)}, "weights": state},
    "a copy under a name of one's own": lambda state: {"before": scaled(state), "net": state},
    "a checkpoint of a checkpoint": lambda state: {"run": {"best": {"net": state}}},
    "Lightning and torch.compile": lambda state: {"state_dict": {f"net._orig_mod.{k}": v for k, v in state.items()}},
    "averaged weights beside them": lambda state: {"state_dict_ema": scaled(state), "state_dict": state},
}


@pytest.mark.parametrize("form", EVERYDAY)
def test_the_weights_are_found_in_every_usual_container(form, network, tmp_path):
    torch.save(EVERYDAY[form](network.state_dict()), tmp_path / "file.pth")
    loaded = load_into_another(tmp_path / "file.pth")
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_one_of_several_fitting_networks_is_chosen_and_a_key_chooses_another(network, tmp_path, caplog):
    state = network.state_dict()
    torch.save({"state_dict": state, "ema": {"model": scaled(state)}, "epoch": 1}, tmp_path / "file.pth")
    other = build_model("resnet8", 10)
    with caplog.at_level("INFO", "mdistiller"):
        checkpoints.load_network(other, tmp_path / "file.pth", "resnet8")
    assert torch.equal(other.state_dict()["fc.weight"], state["fc.weight"])
    assert "(state_dict, ema.model); using state_dict. DISTILLER.TEACHER_WEIGHTS" in caplog.text
    checkpoints.load_network(other, tmp_path / "file.pth", "resnet8", "ema.model")
    assert torch.equal(other.state_dict()["fc.weight"], 2 * state["fc.weight"])
    with pytest.raises(UserError, match="no weights under 'swa'; there are state_dict, ema.model"):
        checkpoints.load_network(other, tmp_path / "file.pth", "resnet8", "swa")


def test_of_several_that_do_not_fit_the_nearest_is_told(network, tmp_path):
    state = {key: value for key, value in network.state_dict().items() if key != "fc.bias"}
    torch.save({"first": {"x": torch.zeros(1)}, "second": state}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"resnet8: 1 key missing \(fc.bias, ...\)$"):
        load_into_another(tmp_path / "file.pth")


def test_the_weights_of_the_part_that_a_network_wraps_are_found():
    network = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)})  # as a detector wraps torchvision's
    state, _ = fitting_state({"net": network["model"].state_dict()}, network)
    network.load_state_dict(state)
    assert torch.equal(state["model.weight"], network["model"].weight)


def test_the_state_found_has_all_names_of_the_network():
    state, _ = fitting_state({"weight": torch.ones(2), "bias": torch.ones(2), "running_var": torch.ones(2),
                              "running_mean": torch.ones(2)}, norm := torch.nn.BatchNorm2d(2))
    assert state.keys() == norm.state_dict().keys() and state["num_batches_tracked"] == 0


def test_a_prefix_is_removed_only_if_all_names_have_it(network, tmp_path):
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.zeros(1)}}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="unknown keys"):
        load_into_another(tmp_path / "file.pth")


def test_a_network_with_a_part_called_student_finds_its_own_weights():
    network = torch.nn.ModuleDict({"student": torch.nn.Linear(2, 3), "head": torch.nn.Linear(3, 2)})
    state, _ = fitting_state(network.state_dict(), network)
    assert state.keys() == network.state_dict().keys()
    part, _ = fitting_state(network.state_dict(), network["student"])  # as a network out of the state of a whole run
    assert torch.equal(part["weight"], network["student"].weight)


def packed(path, mode):
    with tarfile.open(path.with_suffix(".tar"), mode) as file:
        file.add(path, "a.pth")
    path.with_suffix(".tar").rename(path)


MISTAKEN = {  # what stands in a file that is called .pth -> (how it is made of a good file, what the error says)
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html>"), "it is a web page.*; download the file again"),
    "an LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
                       "it is a pointer of Git LFS; git lfs pull"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "it is incomplete; copy or download it again"),
    "nothing": (lambda path: path.write_bytes(b""), "it is incomplete"),
    "text": (lambda path: path.write_text("epoch 3: 97.1"), "it was not written by torch.save"),
    "a tar": (lambda path: packed(path, "w"), "it is an archive; unpack it"),
    "a tar.gz": (lambda path: packed(path, "w:gz"), "it is an archive; unpack it"),
    "a zip": (lambda path: zipfile.ZipFile(path, "w").close(), "it is an archive without the data.pkl"),
    "an array": (lambda path: torch.save({"w": np.ones(2)}, path), "it holds a NumPy array.*; save tensors"),
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(what, network, tmp_path):
    make, expected = MISTAKEN[what]
    torch.save(network.state_dict(), tmp_path / "a.pth")
    make(tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"a.pth: not a checkpoint that can be read safely \({expected}"):
        checkpoints.load(tmp_path / "a.pth")


def test_a_folder_and_a_name_without_its_ending_are_told(tmp_path):
    torch.save({}, tmp_path / "student_best.pth")
    with pytest.raises(UserError, match="no such checkpoint: it is a folder; give a file in it, such as student_best"):
        checkpoints.load(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint; there is .*student_best.pth$"):
        checkpoints.load(tmp_path / "student_best")


def test_safetensors_are_read_whatever_the_file_is_called(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "a.pth")
    loaded = load_into_another(tmp_path / "a.pth")
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="PyTorch 2.4 cannot read them")
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_are_read_and_its_other_values_refused(zipped, network, tmp_path):
    numbers = {"acc": np.float64(3.3), "epoch": np.int64(7), "half": np.float16(0.5), "done": np.bool_(True),
               "other": np.dtype(">f4").type(2)}
    torch.save({"model": network.state_dict(), **numbers}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = checkpoints.load(tmp_path / "a.pth")
    assert {key: content[key] for key in numbers} == {"acc": 3.3, "epoch": 7, "half": 0.5, "done": True, "other": 2.0}
    assert type(content["acc"]) is float and type(content["epoch"]) is int

    class OfObjects:
        def __reduce__(self):
            return np.float64(0).__reduce__()[0], (np.dtype("O"), "anything")

    for value in (OfObjects(), np.dtype([("a", "O")]), np.str_("x")):
        torch.save({"acc": value}, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="it holds a NumPy value of dtype [OVU][0-9]+, which is no number"):
            checkpoints.load(tmp_path / "b.pth")


def test_a_pickled_model_is_refused_in_one_line(network, tmp_path):
    torch.save(network, tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"holds a whole model .*; save the model's state_dict\(\)\)$") as refused:
        checkpoints.load(tmp_path / "whole.pth")
    assert "\x1b" not in str(refused.value) and "trust" not in str(refused.value)


@pytest.mark.parametrize("dtype", [
    getattr(torch, name) for name in ("int8", "int16", "bool", "bits8", "float4_e2m1fn_x2")
    if hasattr(torch, name)  # the last one is new in PyTorch 2.8
])
def test_weights_of_unsuitable_dtypes_are_refused(dtype, network, tmp_path):
    state = dict(network.state_dict())
    state["fc.bias"] = torch.zeros(10 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"fc.bias is of {dtype} in the file and of torch.float32 in the network"):
        load_into_another(tmp_path / "file.pth")


@pytest.mark.parametrize("form", ["sparse_coo", "meta"])
def test_a_weight_without_numbers_in_order_is_refused(form, network, tmp_path):
    state = dict(network.state_dict())
    state["fc.bias"] = torch.zeros(10, device="meta") if form == "meta" else torch.zeros(10).to_sparse()
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"fc.bias is a tensor on .*{form}.* in the file and \(10,\) in the network"):
        load_into_another(tmp_path / "file.pth")


def test_half_precision_is_read(network, tmp_path):
    torch.save(network.half().state_dict(), tmp_path / "file.pth")
    assert torch.equal(load_into_another(tmp_path / "file.pth")["fc.weight"], network.state_dict()["fc.weight"].float())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_key_that_is_slow_to_hash_is_refused_at_once(zipped, tmp_path):
    key = ()
    for _ in range(60):
        key = (key, key)
    torch.save([key], tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="stands for more than 100000000 objects: refused"):
        checkpoints.load(tmp_path / "file.pth")


def test_a_small_file_that_expands_to_much_memory_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(100 << 20))
    with pytest.raises(UserError, match="it would inflate to 104857600 bytes: refused"):
        checkpoints.load(tmp_path / "file.pth")


def test_repeated_references_in_a_pickle_are_counted_each_time():
    pair = ("a", "b")
    for protocol in range(5):
        assert count_objects(pickle.dumps(("a", "b"), protocol)) == 3
        assert count_objects(pickle.dumps([pair, pair], protocol)) >= 7
    with pytest.raises((ValueError, IndexError, KeyError)):
        count_objects(b"no pickle")


def test_a_checkpoint_in_a_folder_of_another_user_is_not_called_missing(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(UserError, match=r"best.pth: cannot be read: Permission denied$"):
        checkpoints.load(tmp_path / "best.pth")
