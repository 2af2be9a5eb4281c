"""Schedules counted in updates, warm-up and parameter groups, as detection and language models need them."""

import pytest
import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.config.length import num_epochs
from mdistiller.engine.optim import DOT, learning_rate, parameter_groups
from mdistiller.errors import UserError
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
