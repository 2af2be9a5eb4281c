"""What must hold on an NVIDIA GPU: python -m pytest -m cuda. Without one these tests are skipped."""

import json

import pytest
import torch

from mdistiller import precision
from mdistiller.bench import ours
from mdistiller.bench.measure import Settings
from mdistiller.command import Interrupted
from mdistiller.engine.setup import train
from tests.engine.support import few_test_images, run, small_cfg, train_command, typed, weights

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = ("DEVICE", "cuda", "SOLVER.BATCH_SIZE", 32, "SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [])
RECORDED = "the training step is recorded as a CUDA graph"
METHODS = ("EA-KD", "EA-DKD", "EA-MLD", "EA-REVIEWKD", "EA-CTKD", "NONE")


def step_of(method, cache=None, **opts):
    """A step of the bench on made-up images: 8 batches of 32 an epoch."""
    settings = Settings(device=torch.device("cuda"), batch=32, images=256, quick=True)
    data = ours.make_data(ours.read_source(settings)[0], settings)
    teacher = ours.make_teacher("resnet14", data, settings)
    return ours.OurStep(data, teacher, ("resnet14", "resnet8"), method, settings, cache=cache, **opts)


def assert_close(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-3, atol=2e-4)


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_without_waiting(step):
    """Steps within an epoch, in which an operation that waits for the device is an error."""
    for _ in range(9):  # plain, observed and recorded steps, and the begin of a second epoch
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return step.trainer.recorded.recording is not None


@pytest.mark.parametrize("recorded", ["never", "auto"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits_for_the_device(method, recorded):
    assert steps_without_waiting(step_of(method, **{"SOLVER.CUDA_GRAPH": recorded})) == (recorded == "auto")


def test_a_step_from_the_cache_never_waits_for_the_device(tmp_path):
    assert not steps_without_waiting(step_of("EA-KD", cache=tmp_path))


@pytest.mark.parametrize("method, opts", [
    *((method, ()) for method in METHODS), ("EA-KD", ("SOLVER.AMP", "bf16")),
    ("KD", ("SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.0001)),  # its steps turn rounding into differences of up to the rate
    ("EA-KD", ("TEACHER_CACHE.ENABLED", True)),
    ("EA-MLD", ("TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.KIND", "replay")),
    ("KD", ("SOLVER.CLIP_NORM", 1.0, "SOLVER.SCHEDULE", "cosine")),
])
def test_recorded_steps_train_as_plain_ones(tmp_path, method, opts):
    opts = (*GPU, "TEACHER_CACHE.DIR", str(tmp_path / "cache"), *opts)
    plain = run(tmp_path / "plain", method, *opts)
    recorded = run(tmp_path / "recorded", method, *opts, "SOLVER.CUDA_GRAPH", "auto")
    assert RECORDED in (recorded / "train.log").read_text() and RECORDED not in (plain / "train.log").read_text()
    assert_close(plain, recorded)
    assert losses(plain) == pytest.approx(losses(recorded), rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_trains_as_a_cpu_apart_from_rounding(tmp_path, method):
    on_cpu = run(tmp_path / "cpu", method, *GPU, "DEVICE", "cpu")
    assert losses(run(tmp_path / "cuda", method, *GPU)) == pytest.approx(losses(on_cpu), rel=5e-2)


@pytest.mark.parametrize("method", ["EA-FCFD", "EA-CRD"])
def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(tmp_path, method):
    folder = run(tmp_path, method, *GPU, "SOLVER.CUDA_GRAPH", "auto")
    assert "not recorded as a CUDA graph" in (folder / "train.log").read_text()


def test_auto_is_bf16_from_ampere_on_and_the_teacher_may_stay_in_float32():
    fast = torch.cuda.get_device_capability()[0] >= precision.AMPERE
    assert precision.resolved("auto", torch.device("cuda")) == ("bf16" if fast else "none")
    step, seen = step_of("EA-KD", **{"SOLVER.AMP": "bf16", "DISTILLER.TEACHER_AMP": "none"}), {}
    for name in ("student", "teacher"):
        network = getattr(step.trainer.distiller, name)
        network.fc.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: output.dtype}))
    step()
    assert seen == {"student": torch.bfloat16, "teacher": torch.float32}


def test_the_optimiser_of_recorded_steps_is_fused():
    for method, fused in (("KD", True), ("FCFD", None)):  # some of FCFD's modules have no gradient in some steps
        updater = step_of(method, **{"SOLVER.CUDA_GRAPH": "auto"}).trainer.updater
        assert updater.optimizer.defaults["fused"] is fused and (updater.rate is not None) == bool(fused)


@pytest.mark.parametrize("recorded", ["never", "auto"])
def test_a_resumed_run_reaches_the_weights_of_an_unbroken_one(tmp_path, recorded):
    opts = (*GPU, "SOLVER.CUDA_GRAPH", recorded)

    def stop(record):
        raise Interrupted(15)

    with few_test_images(), pytest.raises(Interrupted):
        train(small_cfg(tmp_path / "broken", "EA-KD", *opts), after_epoch=stop)
    broken = run(tmp_path / "broken", "EA-KD", *opts, resume=True)
    assert_close(run(tmp_path / "unbroken", "EA-KD", *opts), broken)


def test_a_full_cache_gives_what_an_empty_one_gives(tmp_path):
    opts = (*GPU, "TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.DIR", str(tmp_path / "cache"))
    filling, full = (run(tmp_path / name, "EA-KD", *opts) for name in ("filling", "full"))
    assert "100.0 % of" in (full / "train.log").read_text()
    assert_close(filling, full)


def test_one_process_under_torchrun_trains_through_nccl(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    done = typed(*launcher, *train_command(tmp_path / "nccl", *GPU))
    assert done.returncode == 0, done.stderr
    assert_close(next((tmp_path / "nccl").glob("*/*")), run(tmp_path / "alone", "EA-KD", *GPU))
