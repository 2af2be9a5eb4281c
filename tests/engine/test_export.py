"""Export of the student alone, in three formats that compute the same."""

import importlib.util
import json

import pytest
import torch

from mdistiller.engine import export
from mdistiller.engine.export import export_run, save_onnx
from mdistiller.engine.reopen import open_run
from mdistiller.errors import RunError, UserError
from mdistiller.models import build_model
from tests.engine.support import REPOSITORY, run, weights
from tests.forked import run_tool
from tests.models.support import images


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("kd"), "EA-KD", "SOLVER.EPOCHS", 1, "SOLVER.EMA", 0.5)


@pytest.fixture(scope="module")
def simkd(tmp_path_factory):
    return run(tmp_path_factory.mktemp("simkd"), "SIMKD", "SOLVER.EPOCHS", 1)


def test_the_state_dict_is_the_student_alone_and_plain(finished, tmp_path):
    path, metadata = export_run(finished, formats=["pth"], output=tmp_path)
    state = torch.load(path, weights_only=True)
    student = build_model("resnet8", 10)
    student.load_state_dict(state)
    expected = weights(finished, "student_best.pth")
    assert list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in state)
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix != ".json"] == ["student.pth"]
    assert json.loads(metadata.read_text())["deployed"] == "ResNet"


def test_a_checkpoint_that_was_not_copied_along_is_missing_and_not_one_of_another_run(finished):
    with pytest.raises(UserError, match=rf"^{finished}/epoch_7.pth: no such checkpoint$"):
        open_run(finished, "epoch_7")


def test_the_input_format_is_written_beside_the_network(finished, tmp_path):
    run = open_run(finished)
    data = run.data
    *_, metadata = export_run(finished, "latest", ["pth"], tmp_path)
    metadata = json.loads(metadata.read_text())
    assert metadata["network"] == "resnet8" and metadata["method"] == "EA-KD" and metadata["checkpoint"] == "latest"
    assert metadata["input"]["shape"] == ["batch", 3, 32, 32] and metadata["input"]["mean"] == list(data.info.mean)
    assert metadata["state_dict_input"] == metadata["input"]
    assert metadata["classes"] == list("0123456789") and metadata["num_classes"] == 10


def test_the_average_of_the_student_can_be_exported(finished, tmp_path):
    path, _ = export_run(finished, "ema", ["pth"], tmp_path)
    state, expected = torch.load(path, weights_only=True), weights(finished, "student_ema.pth")
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_metadata_describes_the_input_of_the_bare_state_dict(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    onnx_session(None)
    folder = run(tmp_path, "NONE", "DISTILLER.STUDENT", "timm:test_vit", "DISTILLER.STUDENT_INPUT_SIZE", 48,
                 "SOLVER.EPOCHS", 1)
    state_path, path, metadata = export_run(folder, formats=["pth", "onnx"])
    metadata = json.loads(metadata.read_text())
    assert metadata["state_dict_input"] == {"shape": ["batch", 3, 48, 48], "mean": [0.5] * 3, "std": [0.5] * 3}
    bare = build_model("timm:test_vit", 10, image_size=48).eval()
    bare.load_state_dict(torch.load(state_path, weights_only=True))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(metadata["input"][key]).view(3, 1, 1) for key in ("mean", "std"))
    (logits,) = onnx_session(path).run(["logits"], {"image": ((pixels - mean) / std).numpy()})
    large = torch.nn.functional.interpolate(pixels, (48, 48), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(logits), bare((large - 0.5) / 0.5).logits, atol=1e-4, rtol=1e-4)


def test_safetensors_hold_the_same_tensors(finished, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path, _ = export_run(finished, formats=["safetensors"], output=tmp_path)
    state, expected = safetensors.load_file(path), weights(finished, "student_best.pth")
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def onnx_session(path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    if torch.__version__ < export.ONNX_TORCH:
        pytest.skip("this PyTorch is too old")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) if path else None


def test_onnx_computes_the_students_logits_for_any_batch(finished, tmp_path):
    onnx_session(None)
    path, metadata = export_run(finished, formats=["onnx"], output=tmp_path)
    session, student = onnx_session(path), build_model("resnet8", 10).eval()
    student.load_state_dict(weights(finished, "student_best.pth"))
    for batch in (1, 5):
        image = images(32, batch)
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), student(image).logits, atol=1e-4, rtol=1e-4)
    assert json.loads(metadata.read_text())["onnx_error"] < 1e-5


def test_a_method_that_deploys_more_than_its_student_exports_all_of_it(simkd, tmp_path):
    onnx_session(None)
    state_path, path, metadata = export_run(simkd, formats=["pth", "onnx"], output=tmp_path)
    distiller = open_run(simkd).distiller
    image = images(32, 3)
    (logits,) = onnx_session(path).run(["logits"], {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), distiller(image), atol=1e-4, rtol=1e-4)
    state = torch.load(state_path, weights_only=True)
    distiller.deployed().load_state_dict(state)
    assert any(key.startswith("projector.") for key in state)
    assert json.loads(metadata.read_text())["deployed"] == "ReusedClassifier"


def test_an_onnx_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    onnx_session(None)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2)).eval()
    monkeypatch.setattr(export, "onnx_difference", lambda *_: 0.01)
    with pytest.raises(RunError, match="differs from PyTorch by 0.01"):
        save_onnx(network, 4, tmp_path / "a.onnx")
    monkeypatch.setattr(export, "ONNX_LIMIT", 100)
    with pytest.raises(UserError, match="do not fit into one ONNX file"):
        save_onnx(network, 4, tmp_path / "a.onnx")
    assert not any(tmp_path.iterdir())


class Branches(torch.nn.Module):
    """Branches on the values of the image, which no exporter can trace."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, image):
        pooled = self.layer(image.mean((2, 3)))
        return pooled if pooled.sum() > 0 else -pooled


def test_a_network_that_cannot_be_exported_is_explained_in_one_line(tmp_path):
    onnx_session(None)
    with pytest.raises(UserError, match="cannot be exported to ONNX: ") as caught:
        save_onnx(Branches().eval(), 4, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, fragment",
    [
        (["--formats", "pt"], "expected one of pth, safetensors, onnx, torchscript; found 'pt'"),
        (["--checkpoint", "epoch_7", "--formats", "pth"], "epoch_7.pth: no such checkpoint"),
        (["--run", "nowhere"], "nowhere: not a run folder"),
    ],
)
def test_user_errors_are_one_line(finished, tmp_path, words, fragment):
    done = run_tool("export", ["--run", finished, "--output", tmp_path, *words], REPOSITORY)
    assert done.returncode == 2 and fragment in done.stderr and done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_missing_library_is_named(finished, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: find(name) if name == "sklearn" else None)
    with pytest.raises(UserError, match="onnx needs onnx and onnxscript and onnxruntime: pip install onnx onnxscript"):
        export_run(finished, formats=["onnx"], output=tmp_path)
    assert len(export_run(finished, formats=["pth"], output=tmp_path)) == 2


def test_a_pytorch_that_is_too_old_for_onnx_is_told(finished, tmp_path, monkeypatch):
    onnx_session(None)
    monkeypatch.setattr(export, "ONNX_TORCH", (99, 1))
    with pytest.raises(UserError, match="onnx needs PyTorch 99.1 or newer; this is "):
        export_run(finished, formats=["onnx"], output=tmp_path)


def test_the_command_prints_the_files_it_wrote(finished):
    done = run_tool("export", ["--run", finished, "DATASET.NUM_WORKERS", "0", "--formats", "pth"], REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{finished}/export/student.pth", f"{finished}/export/student.json"]
