"""Whole, gathered and chunked logits, padding, accumulation and processes give the same losses and gradients."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdistiller.data import build_data
from mdistiller.data.collate import Sample, collate, cut
from mdistiller.distillers.divergence import forward_kl
from mdistiller.engine.setup import build_run
from mdistiller.models.language import Tokens
from mdistiller.tasks.base import Head
from mdistiller.tasks.language import Language
from tests.language.goldens import ARRAYS
from tests.language.support import assert_same, config, distiller_of, step

END = 50
SAMPLES = [([1, 2, 3], [4, 5, 6]), ([1, 2, 3, 4, 5, 6], list(range(7, 15))), ([9], [8]), (list(range(3, 11)), [1, 2])]


def test_checkpointing_is_that_of_the_student_and_warns_of_nothing():
    task = Language(config("FKL", "LM.CHECKPOINTING", True), SimpleNamespace(num_classes=8, longest=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        networks = [task.network(role).inner for role in ("STUDENT", "TEACHER")]
    assert [network.transformer.gradient_checkpointing for network in networks] == [True, False]


def test_collation_equals_the_reference_with_cut_prompts_and_answers():
    samples = [cut(prompt, answer, END, 6, 12) for prompt, answer in SAMPLES]
    found = collate(samples, END, 12)
    for ours, theirs in (("ids", "input_ids"), ("mask", "attention_mask"), ("places", "position_ids"),
                         ("labels", "label")):
        np.testing.assert_array_equal(found[ours], ARRAYS[f"collate/{theirs}"], err_msg=ours)
    supervised = ARRAYS["collate/loss_mask"] > 0
    np.testing.assert_array_equal(found["positions"], np.flatnonzero(supervised))
    np.testing.assert_array_equal(found["target"], ARRAYS["collate/label"][supervised])
    np.testing.assert_array_equal(found["group"], supervised.nonzero()[0])


@pytest.mark.parametrize("method", [  # DIST has a loss that relates samples, and so takes all logits at once
    ["SFT"], ["EA-FKL"], ["EA-AKL"], ["EA-SRKL"], ["EA-DIST"], ["EA-DKD", "DISTILLER.LS", True],
], ids=lambda words: words[0])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_logits_in_chunks_give_the_losses_and_gradients_of_all_logits_at_once(method, chunk):
    whole, gradients, first = step(config(*method))
    losses, found, second = step(config(*method, "LM.LOSS_CHUNK", chunk))
    assert_same(whole, losses)
    assert_same(gradients, found)
    assert_same(first.progress, second.progress)
    assert_same(first.monitor, second.monitor)


def test_a_head_computes_in_the_precision_of_the_pass_that_made_the_rows():
    linear, rows = torch.nn.Linear(4, 3), torch.ones(2, 4)
    assert Head(linear, 3, autocast=torch.bfloat16)(rows).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Head(linear, 3)(rows).dtype == torch.float32
    assert Head(linear.bfloat16(), 3)(rows).dtype == torch.bfloat16  # rows of a cache, which are float32


def test_gathered_logits_give_the_loss_of_logits_at_every_position():
    distiller, data = distiller_of(config("FKL"))
    batch = next(data.train_batches(1))
    _, losses = distiller(**batch)
    every = torch.arange(batch["ids"].numel())
    with torch.no_grad():
        student, teacher = (
            network.head(network(Tokens(batch["ids"], batch["mask"], batch["places"], every)))
            for network in (distiller.student, distiller.teacher)
        )
    labels = batch["labels"].flatten()
    torch.testing.assert_close(losses["ce"].detach(), 0.5 * F.cross_entropy(student, labels), rtol=1e-5, atol=1e-6)
    kd = 0.5 * forward_kl(student, teacher, 2.0)[labels >= 0].mean()
    torch.testing.assert_close(losses["kd"].detach(), kd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_batch_without_a_supervised_token_has_losses_of_zero_with_a_gradient(chunk):
    distiller, data = distiller_of(config("EA-FKL", "LM.LOSS_CHUNK", chunk))
    batch = next(data.train_batches(1))
    nothing = {name: batch[name][:0] for name in ("positions", "group", "target")}
    _, losses = distiller(**batch | nothing)
    sum(losses.values()).backward()
    assert {name: loss.item() for name, loss in losses.items()} == {"ce": 0.0, "kd": 0.0}
    assert all(torch.isfinite(p.grad).all() for p in distiller.student.parameters() if p.grad is not None)
    one = {name: batch[name][:1] for name in ("positions", "group", "target")}
    assert all(torch.isfinite(loss) for loss in distiller(**batch | one)[1].values())


def test_padding_to_a_fixed_length_and_to_the_longest_give_the_same_losses():
    dynamic, gradients, _ = step(config())
    fixed, found, _ = step(config("EA-FKL", "LM.PADDING", "fixed"))
    assert_same(dynamic, fixed)
    assert_same(gradients, found)


def test_padding_on_the_left_with_positions_of_the_tokens_scores_like_padding_on_the_right():
    distiller, data = distiller_of(config())
    samples = data.samples["test"][:6]
    right = data.batch("test", np.arange(6))
    rows = [[*sample.prompt, *sample.answer] for sample in samples]
    length = max(map(len, rows)) - 1
    ids = torch.tensor([[0] * (length + 1 - len(row)) + row[:-1] for row in rows])
    mask = torch.tensor([[0] * (length + 1 - len(row)) + [1] * (len(row) - 1) for row in rows])
    positions = torch.cat([
        torch.arange(row * length + length - len(sample.answer), (row + 1) * length)
        for row, sample in enumerate(samples)
    ])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    student = distiller.student.eval()
    with torch.no_grad():
        expected = student(Tokens(right["ids"], right["mask"], right["places"], right["positions"]))
        found = student(Tokens(ids, mask, places, positions))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def uneven_data(cfg):
    """Answers of very different length: one word, and five."""
    data = build_data(cfg, "cpu")
    for number in range(0, 8, 2):
        data.samples["train"][number] = Sample([1, 2, 3], [4, 0])
        data.samples["train"][number + 1] = Sample([1, 2, 3], [*range(5, 25), 0])
    data.tokens = np.array([len(sample.answer) for sample in data.samples["train"]])
    return data


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_accumulated_batches_and_ranks_have_the_gradients_of_one_large_batch(reduction):
    def gradients(size, accumulate, ranks):
        cfg = config("FKL", "SOLVER.BATCH_SIZE", size, "SOLVER.ACCUMULATE", accumulate, "LM.REDUCTION", reduction)
        distiller, data = distiller_of(cfg, uneven_data(cfg))
        for rank in range(ranks):
            batches = data.train_batches(1, rank=rank, world_size=ranks)
            for _, batch in zip(range(accumulate), batches, strict=False):
                share = batch.pop("share", 1.0)
                (share / ranks * sum(distiller(**batch)[1].values())).backward()
        return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}

    whole = gradients(8, 1, 1)
    for parts in ((2, 4, 1), (8, 1, 2), (4, 2, 2), (8, 1, 8)):
        assert_same(whole, gradients(*parts))


def test_shares_of_micro_batches_are_equal_where_the_average_is_theirs():
    cfg = config("FKL", "SOLVER.BATCH_SIZE", 2, "SOLVER.ACCUMULATE", 4, "LM.AVERAGE", "micro_batch")
    batches = uneven_data(cfg).train_batches(1)
    assert [next(batches)["share"] for _ in range(4)] == [0.25] * 4


def test_half_precision_stays_near_full_precision_and_losses_are_float32():
    exact, _, _ = step(config())
    for chunk in (0, 4):
        cfg = config("EA-FKL", "LM.LOSS_CHUNK", chunk)
        distiller, data = distiller_of(cfg)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, losses = distiller(**next(data.train_batches(1)))
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact[name], rtol=2e-2, atol=2e-2)


class RowsOfLogits(torch.utils._python_dispatch.TorchDispatchMode):
    """The most rows of any tensor that an operation makes with one column for each word of the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[-1] == self.vocabulary:
                self.most = max(self.most, value.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("chunk", [0, 80])
def test_no_logits_are_made_at_positions_without_a_label_nor_of_more_than_a_chunk(chunk):
    cfg = config("EA-FKL", "SOLVER.BATCH_SIZE", 64, "LM.LOSS_CHUNK", chunk)
    distiller, data = distiller_of(cfg)
    batch = next(data.train_batches(1))
    with RowsOfLogits(len(data.tokenizer)) as seen:
        _, losses = distiller(**batch)
        sum(losses.values()).backward()
    supervised = len(batch["target"])
    assert 80 < supervised < batch["ids"].numel() / 2
    assert seen.most == (chunk or supervised)


@pytest.mark.parametrize("method", ["SFT", "FKL"])
def test_the_divergence_from_the_teacher_is_measured_on_request(method):
    run = build_run(config(method, "LM.TEACHER_KL", True), torch.device("cpu"))
    (batch,) = list(run.data.eval_batches("test"))[:1]
    with torch.no_grad():
        student, teacher = (run.task.logits(network, batch) for network in (run.distiller.student, run.task.reference))
    by_hand = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1).mean()
    found = run.task.evaluate(run.distiller.student, [batch])
    assert found["teacher_kl"] == pytest.approx(by_hand.item(), rel=1e-5) and found["teacher_kl"] > 0
    assert run.task.evaluate(run.task.reference, [batch])["teacher_kl"] == pytest.approx(0, abs=1e-6)
    assert "teacher_kl" not in build_run(config(method), torch.device("cpu")).task.metrics


def test_an_evaluation_makes_as_few_logits_at_once_as_training():
    found, most = [], []
    for chunk in (0, 3):
        cfg = config("FKL", "LM.TEACHER_KL", True, "LM.LOSS_CHUNK", chunk, "GENERATION.EXAMPLES", 0)
        run, sizes = build_run(cfg, torch.device("cpu")), []
        for network in (run.distiller.student, run.task.reference):
            network.head.register_forward_hook(lambda head, rows, logits, sizes=sizes: sizes.append(len(logits)))
        batch = next(run.data.eval_batches())
        found.append(run.task.evaluate(run.distiller.student.eval(), [batch]))
        most.append(max(sizes))
    assert most == [len(batch["target"]), 3]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
