"""Networks of a config, their input and weights; and runs with networks of other libraries."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mdistiller.engine.checkpoints import state_sha256
from mdistiller.engine.networks import load_student, load_teacher
from mdistiller.errors import UserError
from mdistiller.models import AtInputSize, Output
from mdistiller.tasks import build_task, classification
from tests.engine.support import run, small_cfg, weights

pytest.importorskip("timm")
DATA = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
INFO = SimpleNamespace(name="tiny_imagenet", num_classes=5, image_size=64, mean=DATA[0], std=DATA[1], family="cifar")
PLAIN = """
from torch import nn

class Plain(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))
"""


def network(*opts, role="TEACHER", info=INFO):
    return build_task(small_cfg("unused", "KD", *opts), info).network(role)


def test_a_network_is_wrapped_only_for_another_input_size():
    assert not isinstance(network("DISTILLER.TEACHER_INPUT_SIZE", 64), AtInputSize)
    resized = network("DISTILLER.TEACHER_INPUT_SIZE", 32)
    assert isinstance(resized, AtInputSize) and resized.size == 32
    assert resized.convert(torch.zeros(2, 3, 64, 64)).shape == (2, 3, 32, 32)
    assert not isinstance(network("DISTILLER.TEACHER_INPUT_SIZE", 32, role="STUDENT"), AtInputSize)


def test_a_teacher_s_checkpoint_is_found_whatever_the_case_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = small_cfg("unused", "KD", "DISTILLER.TEACHER", "RESNET8", "DISTILLER.TEACHER_CHECKPOINT", "None")
    task = build_task(cfg, INFO)
    (tmp_path / "checkpoints/tiny_imagenet").mkdir(parents=True)
    torch.save({"model": task.network("TEACHER").state_dict()}, tmp_path / "checkpoints/tiny_imagenet/resnet8.pth")
    assert load_teacher(cfg, task)[1]["teacher_checkpoint"].endswith("checkpoints/tiny_imagenet/resnet8.pth")


def test_a_transformer_sees_the_size_it_was_made_for_and_its_own_normalisation():
    teacher = network("DISTILLER.TEACHER", "timm:test_vit")
    black = (torch.zeros(1, 3, 64, 64) - torch.tensor(DATA[0]).view(3, 1, 1)) / torch.tensor(DATA[1]).view(3, 1, 1)
    seen = teacher.convert(black)
    assert seen.shape == (1, 3, 160, 160)
    torch.testing.assert_close(seen, torch.full_like(seen, -1.0))  # (0 - 0.5) / 0.5
    small = network("DISTILLER.TEACHER", "timm:test_vit", "DISTILLER.TEACHER_INPUT_SIZE", 64)
    assert small.convert(black).shape == (1, 3, 64, 64) and small.inner.inner.pos_embed.shape[1] == 4 * 4 + 1
    as_data = network("DISTILLER.TEACHER", "timm:test_resnet", "DISTILLER.TEACHER_NORMALIZATION", "data")
    assert not isinstance(as_data, AtInputSize)
    with pytest.raises(UserError, match="TEACHER_NORMALIZATION: resnet8 has no normalisation of its own"):
        network("DISTILLER.TEACHER_NORMALIZATION", "own")


def test_pretrained_weights_are_recorded_and_a_teacher_needs_a_trained_head(monkeypatch):
    asked = []

    class Given(nn.Linear):
        new_head = False

        def forward(self, image):
            return Output(super().forward(image.mean((2, 3))), {})

    def build(name, num_classes, family, pretrained=False, **_):
        asked.append(pretrained)
        torch.manual_seed(0)
        return Given(3, num_classes)

    monkeypatch.setattr(classification, "build_model", build)
    opts = [word for role in ("TEACHER", "STUDENT") for word in (f"DISTILLER.{role}_CHECKPOINT", "pretrained")]
    cfg = small_cfg("unused", "KD", *opts)
    teacher, metadata = load_teacher(cfg, build_task(cfg, INFO))
    assert metadata == {"teacher_checkpoint": "pretrained", "teacher_sha256": state_sha256(teacher.state_dict())}
    load_student(cfg, build_task(cfg, INFO))
    assert asked == [True, True]
    monkeypatch.setattr(Given, "new_head", True)
    with pytest.raises(UserError, match="other classes than the 5 .*STUDENT_CHECKPOINT pretrained"):
        load_teacher(cfg, build_task(cfg, INFO))
    load_student(cfg, build_task(cfg, INFO))  # a student may learn its head
    imagenet = SimpleNamespace(**{**vars(INFO), "family": "imagenet", "num_classes": 1000})
    monkeypatch.setattr(Given, "new_head", False)
    asked.clear()
    cfg = small_cfg("unused", "KD", "DISTILLER.TEACHER_CHECKPOINT", None)
    _, metadata = load_teacher(cfg, build_task(cfg, imagenet))
    assert metadata["teacher_checkpoint"] == "pretrained" and asked == [True]


def test_the_hash_of_a_state_depends_on_names_types_shapes_and_values():
    state = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0), "b": torch.tensor(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.tensor(1)},
        {"a": torch.arange(4.0).bfloat16(), "b": torch.tensor(1)},
    ]
    assert len({state_sha256(state), *map(state_sha256, others)}) == 5
    assert state_sha256(dict(reversed(state.items()))) == state_sha256(state)


def test_a_student_starts_from_the_file_that_is_named(tmp_path):
    source = network(role="STUDENT")
    torch.save({"model": source.state_dict()}, tmp_path / "start.pth")
    cfg = small_cfg("unused", "NONE", "DISTILLER.STUDENT_CHECKPOINT", str(tmp_path / "start.pth"))
    student = load_student(cfg, build_task(cfg, INFO))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in student.state_dict().items())


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A transformer trained for an epoch on digits, at 32 pixels, as Table 5's teachers are made."""
    return run(tmp_path_factory.mktemp("teacher"), "NONE", "DISTILLER.STUDENT", "timm:test_vit", "SOLVER.EPOCHS", 1,
               "DISTILLER.STUDENT_INPUT_SIZE", 32)


@pytest.mark.parametrize("method", ["EA-KD", "REVIEWKD"])
def test_a_fine_tuned_transformer_teaches_a_network_of_the_zoo(fine_tuned, tmp_path, method):
    checkpoint = fine_tuned / "student_best.pth"
    assert "pos_embed" in weights(fine_tuned, "student_best.pth")
    folder = run(tmp_path, method, "DISTILLER.TEACHER", "timm:test_vit", "DISTILLER.TEACHER_INPUT_SIZE", 32,
                 "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint), "SOLVER.EPOCHS", 1)
    assert folder.name.startswith(f"digits_{method.lower()}_timm-test_vit_resnet8")
    assert json.loads((folder / "run.json").read_text())["teacher_checkpoint"] == str(checkpoint)
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_user_networks_work_with_logit_methods_and_others_name_what_is_missing(tmp_path):
    (tmp_path / "nets.py").write_text(PLAIN)
    options = ["DISTILLER.STUDENT", f"{tmp_path}/nets.py:Plain", "SOLVER.EPOCHS", 1]
    folder = run(tmp_path / "out", "EA-DKD", *options)
    assert list(weights(folder, "student_best.pth")) == ["2.weight", "2.bias"]
    for method in ("PKT", "REVIEWKD", "FITNET", "FCFD", "SIMKD", "CRD"):
        with pytest.raises(UserError):
            run(tmp_path / method, method, *options)


def test_deployed_weights_of_timms_own_file_load_as_a_teacher(tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "timm.pth")
    cfg = small_cfg("unused", "KD", "DISTILLER.TEACHER", "timm:test_resnet",
                    "DISTILLER.TEACHER_CHECKPOINT", str(tmp_path / "timm.pth"))
    teacher, _ = load_teacher(cfg, build_task(cfg, INFO))
    assert isinstance(teacher, AtInputSize)
