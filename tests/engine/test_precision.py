"""SOLVER.AMP auto, and the teacher's precision apart from the student's."""

import pytest
import torch

from mdistiller import precision
from mdistiller.config import load_cfg
from mdistiller.distillers import build_distiller
from mdistiller.models import build_model
from mdistiller.runs.matching import fit
from mdistiller.runs.records import read_run
from tests.engine.support import run

CPU = torch.device("cpu")
CPUINFO = "model name\t: Some CPU\nflags\t\t: fpu avx2 amx_tile{}\nbugs\t\t: amx_bf16\n"


def test_auto_is_bf16_where_the_processor_lists_amx_with_bf16(monkeypatch):
    assert precision.lists_amx(CPUINFO.format(" amx_bf16 amx_int8"))
    assert not precision.lists_amx(CPUINFO.format("")) and not precision.lists_amx("")
    for amx, meaning in ((" amx_bf16", "bf16"), ("", "none")):
        monkeypatch.setattr(precision, "_cpuinfo", lambda amx=amx: CPUINFO.format(amx))
        assert precision.resolved("auto", CPU) == meaning
        assert [precision.resolved(amp, CPU) for amp in ("none", "bf16", "fp16")] == ["none", "bf16", "fp16"]


@pytest.mark.parametrize(("hip", "capability", "meaning"), [
    (None, (7, 5), "none"), (None, (8, 0), "bf16"), (None, (9, 0), "bf16"), ("6.0", (7, 5), "bf16")])
def test_auto_is_bf16_on_gpus_of_nvidia_from_ampere_on_and_on_amds(hip, capability, meaning, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolved("auto", torch.device("cuda")) == meaning


def test_a_run_records_what_auto_was_and_keeps_it_on_another_machine(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(precision, "_cpuinfo", lambda: CPUINFO.format(" amx_bf16"))
    opts = ["DISTILLER.TEACHER_AMP", "none", "SOLVER.AMP", "auto", "SOLVER.LR_DECAY_STAGES", []]
    folder = run(tmp_path, "KD", *opts, "SOLVER.EPOCHS", 1)
    assert load_cfg(folder / "config.yaml").SOLVER.AMP == "bf16"
    wanted = {"DISTILLER.TYPE": "KD", "SOLVER.AMP": "auto"}
    assert "SOLVER.AMP" not in fit(read_run(folder), wanted | {"DISTILLER.TEACHER_CHECKPOINT": "random",
                                   "DATASET.TYPE": "digits", "DISTILLER.TEACHER": "resnet8",
                                   "DISTILLER.STUDENT": "resnet8"})
    monkeypatch.setattr(precision, "_cpuinfo", lambda: "")
    run(tmp_path, "KD", *opts, "SOLVER.EPOCHS", 1, resume=True)
    assert load_cfg(folder / "config.yaml").SOLVER.AMP == "bf16"


def test_the_teacher_has_a_precision_of_its_own():
    """Logits as they leave the networks: of the student in bf16, of the teacher as TEACHER_AMP says."""
    seen = {}
    for teacher_amp in ("same", "none", "bf16"):
        cfg = load_cfg(None, ["DISTILLER.TYPE", "EA-KD", "DISTILLER.TEACHER_AMP", teacher_amp])
        student, teacher = build_model("resnet8", 10), build_model("resnet8", 10)
        distiller = build_distiller(cfg, student, teacher)
        for name, network in (("student", student), ("teacher", teacher)):
            network.fc.register_forward_hook(
                lambda layer, inputs, output, name=name, key=teacher_amp: seen.update({(key, name): output.dtype}))
        batch = {"image": torch.randn(4, 3, 32, 32), "target": torch.arange(4)}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = distiller(**batch)[1]
        assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {key: dtype for (key, name), dtype in seen.items() if name == "student"} == dict.fromkeys(
        ("same", "none", "bf16"), torch.bfloat16)
    assert {key: dtype for (key, name), dtype in seen.items() if name == "teacher"} == {
        "same": torch.bfloat16, "none": torch.float32, "bf16": torch.bfloat16}
