"""CUDA graphs, as far as a CPU can tell: when a step is recorded, what it may not do, and what is replayed."""

import contextlib

import pytest
import torch

from mdistiller.distillers import DISTILLERS
from mdistiller.engine import graphs, optim, trainer
from mdistiller.streams import Branch
from tests.distillers.support import tiny_batch, tiny_distiller
from tests.engine.support import assert_same_weights, run, small_cfg

CUDA = torch.device("cuda")


@pytest.mark.parametrize("opts, reason", [
    ((), None), (("SOLVER.AMP", "bf16"), None), (("SOLVER.CLIP_NORM", 1.0), None), (("SOLVER.TYPE", "AdamW"), None),
    (("SOLVER.CUDA_GRAPH", "never"), "SOLVER.CUDA_GRAPH is never"), (("SOLVER.AMP", "fp16"), "SOLVER.AMP fp16"),
    (("SOLVER.ACCUMULATE", 2), "SOLVER.ACCUMULATE"), (("SOLVER.SKIP_NONFINITE", 1), "SOLVER.SKIP_NONFINITE"),
    (("SOLVER.EMA", 0.9), "SOLVER.EMA"), (("SOLVER.TRAINER", "dot"), "SOLVER.TRAINER dot"),
    (("COMPILE", True), "COMPILE"),
])
def test_what_keeps_a_run_from_being_recorded(opts, reason):
    cfg = small_cfg("unused", "KD", "SOLVER.CUDA_GRAPH", "auto", *opts)
    found = graphs.why_eager(cfg, CUDA)
    assert found is None if reason is None else found.startswith(reason)
    assert graphs.why_eager(small_cfg("unused", "KD", "SOLVER.CUDA_GRAPH", "auto"), torch.device("cpu")) == (
        "the device is cpu")
    assert graphs.why_eager(small_cfg("unused"), CUDA) == graphs.NEVER  # the default
    varying = graphs.why_eager(small_cfg("unused", "KD", "SOLVER.CUDA_GRAPH", "auto"), CUDA, varying=True)
    assert varying == "some modules of the method are unused in some steps"


def taken_steps(name):
    """The third step of a method, observed: what keeps it from being recorded."""
    distiller = tiny_distiller(name)
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), 0.01, momentum=0.9)

    def compute(batch):
        optimizer.zero_grad(set_to_none=True)
        sum(distiller(**batch, epoch=2)[1].values()).backward()
        optimizer.step()

    def state():
        return dict(distiller.named_parameters()) | dict(distiller.named_buffers()) | {
            str(number): value["momentum_buffer"] for number, value in enumerate(optimizer.state.values())}

    batch = {key: value for key, value in tiny_batch().items() if isinstance(value, torch.Tensor)}
    for _ in range(2):
        compute(batch)
    return graphs.observed(compute, batch, state)[1]


FOUND = {"CRD": "it draws random numbers on the CPU", "FCFD": "it draws random numbers on the CPU"}


@pytest.mark.parametrize("name", sorted(name for name in DISTILLERS if not DISTILLERS[name].weighted))
def test_which_methods_decide_on_the_host(name):
    assert taken_steps(name) == FOUND.get(name)


def test_a_step_that_rebinds_its_state_is_found():
    state = {"count": torch.zeros(1)}

    def compute(batch):
        state["count"] = state["count"] + 1

    assert graphs.observed(compute, {"image": torch.zeros(1)}, lambda: state)[1] == "it replaces count by a new tensor"


def test_a_step_that_waits_for_the_device_is_found(monkeypatch):
    monkeypatch.setattr(graphs, "_waits", lambda batch: contextlib.nullcontext(["a warning of PyTorch"]))
    found = graphs.observed(lambda batch: "result", {"image": torch.zeros(1)}, dict)
    assert found == ("result", "it waits for the device")


def test_a_batch_of_other_things_than_tensors_is_never_recorded(monkeypatch):
    said = []
    monkeypatch.setattr(graphs.log, "info", lambda text, *values: said.append(text % values))
    steps = graphs.RecordedSteps(lambda batch: len(batch), dict)
    assert [steps(1, {"image": [torch.zeros(2)], "target": torch.zeros(2)}) for _ in range(5)] == 5 * [2]
    assert steps.recording is None
    assert said == ["the training step is not recorded as a CUDA graph: a batch holds more than tensors"]


def test_all_tensors_that_a_step_reads_and_changes_are_watched():
    distiller = tiny_distiller("FITNET")
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), 0.01, momentum=0.9)
    sum(distiller(**tiny_batch())[1].values()).backward()
    optimizer.step()
    found = graphs.tensors_of(distiller, optimizer)
    networks = {"student.": distiller.student, "the teacher's ": distiller.teacher}
    assert {f"{whose}{name}" for whose, network in networks.items() for name in network.state_dict()} <= found.keys()
    assert found.keys() > dict(distiller.named_parameters()).keys()
    momenta = [tensor for name, tensor in found.items() if name.startswith("the optimiser's momentum_buffer ")]
    assert len(momenta) == len(optimizer.state) > 0


def test_several_processes_keep_a_run_from_being_recorded(monkeypatch):
    monkeypatch.setattr(graphs.distributed, "world_size", lambda: 2)
    cfg = small_cfg("unused", "KD", "SOLVER.CUDA_GRAPH", "auto")
    assert graphs.why_eager(cfg, CUDA) == "several processes average their gradients"


class Replayed:
    """Stands for a recording on a machine without CUDA: a replay computes on the tensors that were given once."""

    number = replays = 0

    def __init__(self, compute, batch):
        self.compute, self.batch = compute, batch
        Replayed.number += 1

    def replay(self):
        Replayed.replays += 1
        return self.compute(self.batch)


SHORT = ("SOLVER.CUDA_GRAPH", "auto", "SOLVER.BATCH_SIZE", 32, "SOLVER.LR_DECAY_STAGES", [])


def test_replayed_steps_train_as_plain_ones(tmp_path, monkeypatch):
    """Epochs of 4 whole batches and a smaller one: three plain steps, then a recording for the rest of each."""
    opts = (*SHORT, "SOLVER.EPOCHS", 2, "SOLVER.SCHEDULE", "cosine")
    plain = run(tmp_path / "plain", "EA-KD", *opts)
    for module in (trainer, optim):  # as on a GPU
        monkeypatch.setattr(module, "why_eager", lambda *args: None)
    monkeypatch.setattr(graphs, "Recording", Replayed)
    monkeypatch.setattr(Replayed, "number", 0)
    monkeypatch.setattr(Replayed, "replays", 0)
    replayed = run(tmp_path / "replayed", "EA-KD", *opts)
    assert (Replayed.number, Replayed.replays) == (2, 2 * 4 - 3)
    assert_same_weights(plain, replayed)


def test_only_batches_of_the_recorded_shape_and_type_are_replayed(monkeypatch, caplog):
    monkeypatch.setattr(graphs, "Recording", Replayed)
    monkeypatch.setattr(Replayed, "replays", 0)
    monkeypatch.setattr(graphs.log, "propagate", True)
    caplog.set_level("INFO", logger="mdistiller")
    steps = graphs.RecordedSteps(lambda batch: (batch["image"].clone(), Replayed.replays), dict)
    kinds = {"plain": torch.zeros(2), "smaller": torch.zeros(1), "double": torch.zeros(2, dtype=torch.float64)}
    for number, (kind, replays) in enumerate([("plain", 0)] * 3 + [
            ("plain", 1), ("smaller", 1), ("double", 1), ("plain", 2)]):
        batch = {"image": kinds[kind] + number}
        image, count = steps(1, batch)
        assert torch.equal(image, batch["image"]) and image.dtype == batch["image"].dtype and count == replays
    assert caplog.text.count("the training step is recorded as a CUDA graph once an epoch") == 1


def test_a_method_that_cannot_be_recorded_trains_as_ever_and_the_log_says_why(tmp_path, monkeypatch):
    for module in (trainer, optim):
        monkeypatch.setattr(module, "why_eager", lambda *args: None)
    monkeypatch.setattr(graphs, "Recording", None)
    folder = run(tmp_path, "FCFD", "SOLVER.EPOCHS", 1, *SHORT)
    assert "not recorded as a CUDA graph: it draws random numbers on the CPU" in (folder / "train.log").read_text()


def test_a_step_whose_recording_fails_is_taken_as_it_is(tmp_path, monkeypatch):
    class Failing(Replayed):
        def __init__(self, compute, batch):
            compute(batch)  # as far as the operation that cannot be recorded
            raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setattr(graphs, "Recording", Failing)
    taken, tensor = [], torch.zeros(1)
    steps = graphs.RecordedSteps(lambda batch: taken.append(float(batch["image"])), dict)
    for number in range(5):
        steps(1, {"image": tensor + number})
    assert [number for number in taken if taken.count(number) == 1] == [0, 1, 2, 4]  # 3 was begun, then taken
    assert steps.reason == "recording it failed (RuntimeError: operation not permitted when stream is capturing)"


def test_a_branch_is_nothing_without_a_recording():
    with Branch() as nothing:
        assert nothing is None
    assert Branch().begin is None


def test_a_checkpoint_of_a_recorded_run_goes_on_without_recording(monkeypatch):
    """The way of computing is the device's own; rate, momenta and weights are the run's."""
    distiller = tiny_distiller("KD")
    cfg = small_cfg("unused", "KD")
    monkeypatch.setattr(optim, "why_eager", lambda *args: None)
    recorded = optim.build_updater(cfg, distiller, torch.device("cpu"))
    recorded.set_learning_rate(0.02)
    tensor = recorded.optimizer.param_groups[0]["lr"]
    assert tensor is recorded.rate and tensor.item() == pytest.approx(0.02)
    recorded.step(distiller(**tiny_batch())[1])
    saved = recorded.state_dict()
    saved["optimizer"]["param_groups"][0]["fused"] = True  # as on a GPU
    monkeypatch.undo()
    plain = optim.build_updater(cfg, distiller, torch.device("cpu"))
    plain.load_state_dict(saved)
    plain.set_learning_rate(0.03)
    group = plain.optimizer.param_groups[0]
    assert (group["lr"], group["fused"]) == (0.03, None)
    momenta = [[state["momentum_buffer"] for state in one.optimizer.state.values()] for one in (recorded, plain)]
    assert all(map(torch.equal, *momenta)) and momenta[0]
