"""Conversion of detectron2's pickles and of published pairs, and results in COCO's format."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mdistiller.engine import checkpoints
from mdistiller.engine.numpy_numbers import read_arrays
from mdistiller.engine.teachers.convert import convert_file
from mdistiller.errors import UserError
from tests.detection.support import GOLDEN, SMALL, detector, golden, write_coco
from tests.forked import run_tool

REPOSITORY = Path(__file__).resolve().parents[2]


def zoo_state():
    with np.load(GOLDEN / "detectron2.npz") as arrays:
        return {key.removeprefix("state."): arrays[key] for key in arrays.files if key.startswith("state.")}


def tool(name, *words):
    return run_tool(name, words, REPOSITORY)


def test_a_pickle_of_the_model_zoo_becomes_a_checkpoint(tmp_path):
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": zoo_state(), "__author__": "somebody"}))
    done = tool("fetch_teachers", "--convert", "detectron2", file, "--to", tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, [str(tmp_path / "coco" / "r50.pth")]), done.stderr
    net = detector("r50", 80, norm="frozen", pixels="bgr")
    checkpoints.load_network(net, tmp_path / "coco" / "r50.pth", "r50 with 80 classes")
    scores = golden("detectron2")["state.roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(net.model.roi_heads.box_predictor.cls_score.weight, torch.cat([scores[-1:], scores[:-1]]))
    assert not net.model.roi_heads.box_predictor.bbox_pred.weight[:4].any()


def test_a_pair_becomes_a_teacher_and_the_backbone_of_a_student(tmp_path):
    zoo = {key: torch.from_numpy(value) for key, value in zoo_state().items()}
    body = {key: value for key, value in zoo.items() if key.startswith("backbone.bottom_up.")}
    torch.save({"model": {f"teacher.{key}": value for key, value in zoo.items()} | body}, tmp_path / "pair.pth")
    teacher, student = convert_file(tmp_path / "pair.pth", tmp_path)
    assert (teacher.name, student.name) == ("r50.pth", "r50_imagenet.pth")
    net = detector("r50", 3, norm="frozen")
    before = net.model.roi_heads.box_head.fc6.weight.clone()
    checkpoints.load_network(net, student, "r50 with 3 classes", part=True)
    assert torch.equal(net.model.roi_heads.box_head.fc6.weight, before)
    assert torch.equal(net.model.backbone.body.conv1.weight, zoo["backbone.bottom_up.stem.conv1.weight"])
    with pytest.raises(UserError, match=r"holds only the weights model.backbone.body.\* of a network, with which a st"):
        checkpoints.load_network(net, student, "r50 with 3 classes")  # its heads would be random
    torch.save({"model": dict(list(torch.load(student, weights_only=True)["model"].items())[1:]),
                "part": "model.backbone.body."}, student)
    with pytest.raises(UserError, match="1 key missing"):
        checkpoints.load_network(net, student, "r50 with 3 classes", part=True)


class Harmful:
    def __reduce__(self):
        return print, ("code of a file was run",)


@pytest.mark.parametrize(("content", "words"), [
    (pickle.dumps({"model": {"a": Harmful()}}), "builtins.print is not allowed"), (b"nothing", "not a pickle"),
    (pickle.dumps({"model": {}}), "not a pickle"),
    (pickle.dumps({"model": {"head.x": np.ones(2)}}), "head.x: not a parameter of"),
])
def test_a_file_that_is_not_a_detector_is_refused_and_its_code_does_not_run(tmp_path, capsys, content, words):
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        convert_file(tmp_path / "model.pkl", tmp_path)
    assert "code of a file" not in capsys.readouterr().out and "\n" not in str(error.value)


class OfPointers:
    """An array of objects whose dtype says that they are none: NumPy itself takes its bytes for pointers."""

    def __reduce__(self):
        class Flagless:
            def __reduce__(self):
                return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

        reconstruct, words, _ = np.zeros(1).__reduce__()
        return reconstruct, words, (1, (1,), Flagless(), False, b"AAAAAAAA")


@pytest.mark.parametrize("value", [OfPointers(), [OfPointers()]])
def test_bytes_of_a_file_are_never_taken_for_pointers(value, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"a": value}}))
    with pytest.raises(UserError, match="it holds a NumPy value of dtype O8, which is no number"):
        read_arrays(tmp_path / "model.pkl")


def test_arrays_are_read_as_numpy_and_python_2_wrote_them(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
              "big": np.arange(3, dtype=">i4"), "flags": np.array([True, False]), "scalar": np.float32(0.5)}
    for protocol in (0, 2, 4):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(arrays, protocol))
        found = read_arrays(tmp_path / "model.pkl")
        assert all(np.array_equal(found[key], value) for key, value in arrays.items())
        assert all(array.dtype.isnative for array in found.values())
    (tmp_path / "model.pkl").write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\n"
        b"dtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + np.array([0.1, -2], "<f4").tobytes() + b"tbs.")
    assert np.array_equal(read_arrays(tmp_path / "model.pkl")["a"], np.array([0.1, -2], np.float32))


CONV, SCORES = "backbone.bottom_up.res4.0.conv1.weight", "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize("content", [
    {"model": [1]}, {"model": None}, {"model": torch.ones(2)}, {CONV: "x"}, {CONV: None}, {CONV: {"a": torch.ones(2)}},
    {SCORES: torch.tensor(1.0)}, {3: torch.ones(2)}, {f"teacher.{CONV}": None},
    {f"teacher.{CONV}": torch.ones(2), 3: 4},
])
def test_a_checkpoint_that_is_no_detector_is_refused_in_one_line(content, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth: .*expected") as error:
        convert_file(tmp_path / "model.pth", tmp_path)
    assert "\n" not in str(error.value)


def test_results_are_written_in_cocos_standard_form(tmp_path):
    root = write_coco(tmp_path / "coco")
    torch.save({"model": detector("r18", 3).state_dict()}, tmp_path / "net.pth")
    done = tool("eval", "-m", "r18", "-c", tmp_path / "net.pth", "-d", "coco", "--results", tmp_path / "found.json",
                *SMALL, "DATASET.TYPE", "coco", "DATASET.ROOT", root, "DETECTION.SCORE_THRESHOLD", 0)
    assert done.returncode == 0, done.stderr
    assert "AP 0" in done.stdout.replace("ap ", "AP ") and "3 samples" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found and {one["category_id"] for one in found} <= {3, 7, 90}
    assert {one["image_id"] for one in found} <= {100, 101, 102} and len(found[0]["bbox"]) == 4


def test_results_of_a_classifier_are_refused(tmp_path):
    done = tool("eval", "-m", "resnet20", "-c", "checkpoints/digits/resnet20.pth", "-d", "digits", "--results",
                tmp_path / "found.json")
    assert done.returncode == 2 and "--results: expected a detection data set; digits has no" in done.stderr
