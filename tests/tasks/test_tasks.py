"""Samples that are not images, in the same training step: groups, unequal shares, losses of the task."""

import math

import pytest
import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import DISTILLERS, Distiller, build_distiller, register
from mdistiller.distillers.base import weighted_mean
from mdistiller.distillers.ea import KINDS, ea_weight
from mdistiller.functional import entropy, group_mean, mean_by_group
from mdistiller.models import Output
from mdistiller.tasks import TASKS, Task, TaskOutput, build_task

GROUP = torch.tensor([7, -2, 7, 7, -2])
LOGIT_METHODS = sorted(
    name for name in DISTILLERS
    if DISTILLERS[name].inputs == "logits" and len(DISTILLERS[name].views) == 1 and DISTILLERS[name].needs_teacher
)


class Tokens(Task):
    """Positions of sequences (B, L, D) that have a label, as samples; labels of -1 are not supervised."""

    headline, metrics, unit = "accuracy", ("accuracy",), "tokens"

    def inputs(self, batch, view):
        return batch["hidden"], batch["labels"]

    def run_student(self, network, inputs):
        hidden, labels = inputs
        chosen = (labels >= 0).nonzero()
        output = network(hidden[chosen[:, 0], chosen[:, 1]])
        return TaskOutput(output.logits, output.features, group=chosen[:, 0], extra=labels[labels >= 0])

    def run_teacher(self, network, inputs, student):
        return self.run_student(network, inputs)

    def target(self, batch, student):
        return student.extra

    def supervised(self, outputs, target, label_smoothing):
        rows = nn.functional.cross_entropy(outputs[0].logits, target, reduction="none")
        return {"ce": weighted_mean(rows, torch.ones_like(rows), "ce")}

    def progress(self, logits, target):
        return {"accuracy": logits.argmax(dim=1) == target}

    def blank_inputs(self, size, like):
        return torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long)


class Head(nn.Linear):
    def forward(self, x):
        return Output(super().forward(x), {"pooled_feat": x})


def token_distiller(name, *opts):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DISTILLER.TYPE", name, *opts])
    info = {"num_classes": 6, "num_train": 2, "targets": torch.arange(2)}
    return build_distiller(cfg, Head(4, 6), Head(4, 6), info, Tokens(cfg, None))


def token_batch(*lengths):
    labels = torch.full((len(lengths), 5), -1)
    for row, length in enumerate(lengths):
        labels[row, 5 - length:] = torch.arange(length) % 6
    hidden = torch.randn(len(lengths), 5, 4, generator=torch.Generator().manual_seed(1))
    return {"hidden": hidden, "labels": labels, "epoch": 30, "index": torch.arange(len(lengths))}


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_every_logit_method_trains_on_tokens_unchanged(name):
    distiller = token_distiller(name)
    logits, losses = distiller(**token_batch(3, 1, 4))
    sum(losses.values()).backward()
    assert logits.shape == (8, 6) and all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    assert distiller.student.weight.grad.abs().sum() > 0 and distiller.progress["accuracy"].shape == (8,)


def test_a_batch_without_samples_has_zero_loss_and_a_gradient():
    distiller = token_distiller("EA-KD")
    _, losses = distiller(**token_batch(0, 0))
    sum(losses.values()).backward()
    assert all(float(loss.detach()) == 0 for loss in losses.values())
    assert torch.equal(distiller.student.weight.grad, torch.zeros(6, 4))


def test_gradients_of_parts_times_their_shares_add_up_to_that_of_the_batch():
    whole = token_distiller("EA-KD")
    batch = token_batch(4, 1, 2)
    sum(whole(**batch)[1].values()).backward()
    parts = token_distiller("EA-KD")
    for rows, tokens in ((slice(0, 1), 4), (slice(1, 3), 3)):
        part = batch | {key: batch[key][rows] for key in ("hidden", "labels", "index")}
        (tokens / 7 * sum(parts(**part)[1].values())).backward()
    torch.testing.assert_close(parts.student.weight.grad, whole.student.weight.grad)


def test_samples_of_a_group_get_the_weight_of_their_mean_entropies():
    student, teacher = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    for kind in KINDS:
        found = ea_weight(student, teacher, 2.0, kind, group=GROUP)
        assert found.shape == (5,) and torch.equal(found[[0, 2, 3]], found[:1].expand(3))
    h_s, h_t = entropy(student, 2.0), entropy(teacher, 2.0)
    rows = GROUP == 7
    expected = h_t[rows].mean() / 2 * (1 + h_s[rows].mean() / math.log(6))
    torch.testing.assert_close(ea_weight(student, teacher, 2.0, group=GROUP.int())[0], expected)


def test_group_means_by_hand():
    values = torch.tensor([1.0, 10.0, 2.0, 6.0, 20.0])
    assert group_mean(values, GROUP).tolist() == [3.0, 15.0, 3.0, 3.0, 15.0]
    assert group_mean(values[:0], GROUP[:0]).shape == (0,)
    assert mean_by_group(values, torch.tensor([0, 2, 0, 0, 2]), 3, empty=1.0).tolist() == [3.0, 1.0, 15.0]


def test_ea_level_chooses_weights_per_sample_or_per_group():
    by_token, by_sequence = token_distiller("EA-KD"), token_distiller("EA-KD", "EA.LEVEL", "group")
    for distiller in (by_token, by_sequence):
        distiller(**token_batch(3, 2))
    assert len(by_token.monitor["weight"].unique()) == 5 and len(by_sequence.monitor["weight"].unique()) == 2


def test_a_loss_for_each_image_gets_the_mean_weight_of_its_samples():
    @register("TOY-PER-IMAGE")
    class Toy(Distiller):
        """A method for this test."""

        sample_axis = "image"

        def sample_losses(self, student, teacher, **batch):
            return {"toy": torch.tensor([1.0, 10.0])}

    try:
        distiller = token_distiller("EA-TOY-PER-IMAGE")
        _, losses = distiller(**token_batch(3, 2))
        weight = distiller.monitor["weight"]
        torch.testing.assert_close(losses["toy"], (weight[:3].mean() + 10 * weight[3:].mean()) / 2)
    finally:
        del DISTILLERS["TOY-PER-IMAGE"], DISTILLERS["EA-TOY-PER-IMAGE"]


def test_the_task_is_set_by_its_key_or_by_the_data():
    cfg = load_cfg(None, [])
    assert type(build_task(cfg, None)) is TASKS["classification"]
    cfg.TASK.TYPE = "clasification"
    with pytest.raises(LookupError, match="unknown TASK.TYPE 'clasification'; nearest: classification"):
        build_task(cfg, None)
