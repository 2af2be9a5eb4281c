"""Schedules counted in updates, warm-up and parameter groups, as detection and language models need them."""

import math

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from mdistiller.config import load_cfg
from mdistiller.config.length import num_epochs
from mdistiller.distillers import build_distiller
from mdistiller.engine.optim import DOT, build_updater, learning_rate, parameter_groups
from mdistiller.errors import UserError
from mdistiller.precision import autocast
from tests.engine.support import assert_same_weights, run


def solver(*opts):
    return load_cfg(None, [str(word) for word in opts]).SOLVER


def test_the_schedule_of_detectron2():
    recipe = solver("SOLVER.LR", 0.01, "SOLVER.MAX_ITER", 180_000, "SOLVER.STEPS", [120_000, 160_000],
                    "SOLVER.WARMUP_ITERS", 1000, "SOLVER.WARMUP_FACTOR", 0.001, "SOLVER.EVAL_PERIOD", 60_000)
    assert num_epochs(recipe) == 3
    rates = {step: learning_rate(recipe, 1 + step // 60_000, step % 60_000, 60_000)
             for step in (0, 500, 1000, 119_999, 120_000, 160_000)}
    assert rates == pytest.approx(
        {0: 1e-5, 500: 0.005005, 1000: 0.01, 119_999: 0.01, 120_000: 1e-3, 160_000: 1e-4}, rel=1e-12
    )


def test_the_cosine_of_each_update_of_a_language_model():
    recipe = solver("SOLVER.LR", 5e-4, "SOLVER.MIN_LR", 1e-7, "SOLVER.SCHEDULE", "cosine", "SOLVER.EPOCHS", 20)
    rates = [learning_rate(recipe, 1 + step // 357, step % 357, 357) for step in (0, 357, 3570, 7139)]
    assert rates == pytest.approx([5e-4, 4.969227e-4, 2.5005e-4, 1.000242e-7], rel=1e-6)


def test_warm_up_is_for_every_schedule():
    steps = solver("SOLVER.LR", 0.4, "SOLVER.WARMUP_EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [3])
    assert [learning_rate(steps, epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([0.0, 0.2, 0.4, 0.04])


def test_a_period_must_divide_the_run():
    with pytest.raises(UserError, match="SOLVER.EVAL_PERIOD: expected a divisor of SOLVER.MAX_ITER 10; found 3"):
        num_epochs(solver("SOLVER.MAX_ITER", 10, "SOLVER.EVAL_PERIOD", 3))


@pytest.mark.parametrize(("choice", "spared"), [
    ("norm", {"1.weight", "1.bias", "2.weight", "2.bias"}),
    ("norm_and_bias", {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias"}),
])
def test_weight_decay_leaves_out_norms_and_biases(choice, spared):
    class Net(nn.Sequential):
        def learnable_parameters(self):
            return list(self.parameters())

    network = Net(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))
    decayed, not_decayed = parameter_groups(network, solver("SOLVER.NO_DECAY", choice))
    assert "weight_decay" not in decayed and not_decayed["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(parameter)] for parameter in not_decayed["params"]} == spared
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(names)


def test_a_run_counted_in_updates_takes_the_same_steps_as_one_counted_in_epochs(tmp_path):
    rate = ("SOLVER.LR_DECAY_STAGES", [9], "SOLVER.EPOCHS", 2)
    by_epochs = run(tmp_path / "epochs", "KD", *rate)  # of three batches
    by_updates = run(tmp_path / "updates", "KD", *rate, "SOLVER.MAX_ITER", 6, "SOLVER.EVAL_PERIOD", 3)
    assert_same_weights(by_epochs, by_updates)
    assert torch.load(by_updates / "latest.pth", weights_only=True)["epoch"] == 3


def test_periods_that_end_within_an_epoch_of_the_data_continue_where_they_stopped(tmp_path):
    thirds = run(tmp_path, "KD", "SOLVER.MAX_ITER", 15, "SOLVER.EVAL_PERIOD", 5)
    lines = (thirds / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(("opts", "values"), [
    # the gradients 1 + 0.5 p and 3 + 0.5 p, with the velocities 1.5 and 0.9 * 1.5 + 3.425
    (["SGD", "SOLVER.MOMENTUM", 0.9], (1 - 0.15, 0.85 - 0.4775)),
    # the same velocities, 0.9 times which are added to each gradient: 1.5 + 1.35, then d = 3 + 0.5 * 0.715
    (["SGD", "SOLVER.MOMENTUM", 0.9, "SOLVER.NESTEROV", True], (0.715, 0.715 - 0.1 * (3.3575 + 0.9 * 4.7075))),
    # p is first multiplied by 1 - 0.1 * 0.5; means of gradients 1 and 7 / 3, of their squares 1 and 39 / 7
    (["AdamW", "SOLVER.BETAS", (0.5, 0.75), "SOLVER.EPS", 1.0],
     (0.95 - 0.05, 0.9 * 0.95 - 0.1 * (7 / 3) / (math.sqrt(39 / 7) + 1))),
])
def test_the_optimisers_by_hand(opts, values):
    cfg = load_cfg(None, [*map(str, ("SOLVER.LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.TYPE", *opts))])
    student = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        student.weight.fill_(1.0)
    optimizer = build_updater(cfg, build_distiller(cfg, student, None), torch.device("cpu")).optimizer
    for gradient, value in zip((1.0, 3.0), values, strict=True):
        student.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        assert student.weight.item() == pytest.approx(value, rel=1e-12)


def test_a_state_of_adamw_without_one_of_its_means_is_refused():
    cfg = load_cfg(None, ["SOLVER.TYPE", "AdamW"])
    distiller = build_distiller(cfg, nn.Linear(1, 1), None)
    updater = build_updater(cfg, distiller, torch.device("cpu"))
    distiller.student(torch.ones(1, 1)).sum().backward()
    updater.optimizer.step()
    state = updater.state_dict()
    updater.load_state_dict(state)
    del state["optimizer"]["state"][1]["exp_avg_sq"]
    with pytest.raises(ValueError, match="^exp_avg_sq of parameter 1 is missing$"):
        updater.load_state_dict(state)


def test_gradients_below_the_range_of_fp16_are_scaled_on_every_device():
    device = torch.device("cpu")
    cfg = load_cfg(None, ["SOLVER.AMP", "fp16", "SOLVER.LR", "1.0", "SOLVER.WEIGHT_DECAY", "0.0"])
    distiller = build_distiller(cfg, nn.Linear(1, 1, bias=False), None)
    updater, weight = build_updater(cfg, distiller, device), nn.init.zeros_(distiller.student.weight)
    for _ in range(2):  # the state of a version that did not scale here is taken over
        with autocast(device, "fp16"):
            loss = distiller.student(torch.ones(1, 1)).sum()
        updater.step({"ce": loss.float() * 1e-9})  # fp16 ends at 6e-8
        updater.load_state_dict({**updater.state_dict(), "scaler": {}})
    assert weight.item() == pytest.approx(-2.9e-9, rel=1e-3)  # steps of 1 and 1.9, by the momentum


def test_fp16_on_mps_is_refused_by_a_pytorch_that_cannot_scale_there(monkeypatch):
    cfg = load_cfg(None, ["SOLVER.AMP", "fp16"])
    distiller, device = build_distiller(cfg, nn.Linear(1, 1), None), torch.device("mps")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    build_updater(cfg, distiller, device)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1"))
    with pytest.raises(UserError, match=r"^SOLVER\.AMP: fp16 on mps needs PyTorch 2\.8 or newer; this is 2\.7\.1$"):
        build_updater(cfg, distiller, device)


def test_dot_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = DOT([parameter], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.0)
    for _ in range(2):
        optimizer.step([torch.tensor([1.0])], [torch.tensor([2.0])])
    # v_task: 1, 1.825; v_kd: 2, 3.95; steps of 0.3 and 0.5775
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.0 - 0.3 - 0.5775], dtype=torch.float64))


@pytest.mark.parametrize("gradients", [([2.0], None), (None, [2.0])])
def test_parameters_reached_by_one_loss_have_plain_momentum_and_decay(gradients):
    """As SGD, except that parameters reached only by distillation do not decay in the first step, as in mdistiller."""
    alone, sgd = (torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    optimizer = DOT([alone], lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.5)
    expected = torch.optim.SGD([sgd], lr=0.1, momentum=0.9, weight_decay=0.5)
    for step in range(3):
        optimizer.step(*([gradient and torch.tensor(gradient)] for gradient in gradients))
        expected.param_groups[0]["weight_decay"] = 0.0 if step == 0 and gradients[0] is None else 0.5
        sgd.grad = torch.tensor([2.0], dtype=torch.float64)
        expected.step()
    torch.testing.assert_close(alone, sgd)
