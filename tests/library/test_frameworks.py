"""What transformers' Trainer, timm, torch.func and wrappers of several processes need from the module of `distill`."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mdistiller import distributed
from mdistiller.errors import UserError
from mdistiller.library import distill
from tests.library.test_distill import IMAGES, LABELS, own_pair


@pytest.fixture
def two_processes(tmp_path, monkeypatch):
    """One process that takes itself for the first of two."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0,
                                         world_size=1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    yield
    torch.distributed.destroy_process_group()


class Around(nn.Module):
    """A user's module that calls `kd`, as a LightningModule does."""

    def __init__(self, kd):
        super().__init__()
        self.kd = kd

    def forward(self, *batch):
        return self.kd(*batch)


@pytest.mark.parametrize("given, called, method, missing", [
    ("plain", lambda kd: kd, "KD", "student.inner.stem.weight"),
    ("plain", lambda kd: kd if DistributedDataParallel(kd.student) else None, "KD", "student.inner.stem.weight"),
    ("plain", DistributedDataParallel, "VID", None),
    ("plain", lambda kd: DistributedDataParallel(Around(kd)), "VID", None),
    ("plain", Around, "KD", "student.inner.stem.weight"),
    ("wrapped", lambda kd: kd, "KD", None),
    ("wrapped", lambda kd: kd, "VID", "regressors.0.0.weight"),
], ids=range(7))
def test_parameters_that_no_wrapper_averages_are_named(given, called, method, missing, two_processes, caplog):
    student, teacher = own_pair()
    kd = distill(DistributedDataParallel(student) if given == "wrapped" else student, teacher, method)
    model = called(kd)
    caplog.clear()
    for _ in range(2):
        model(IMAGES, LABELS)
    told = [record.message for record in caplog.records if record.message.startswith("gradients not averaged")]
    assert len(told) == (missing is not None) and all(f"the gradients of {missing}" in line for line in told)
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_student_that_was_split_before_is_whole_only_in_a_pass(two_processes):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs PyTorch 2.6")
    student, teacher = own_pair()
    fsdp.fully_shard(student, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    kd = distill(student, teacher, "FITNET")
    assert all(hasattr(parameter, "full_tensor") for parameter in kd.student.parameters())


def test_a_language_model_may_be_split_by_layers_and_not_as_a_whole(two_processes):
    transformers, fsdp = pytest.importorskip("transformers"), pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs PyTorch 2.6")
    config = transformers.GPT2Config(vocab_size=8, n_positions=4, n_embd=8, n_layer=1, n_head=1, bos_token_id=0,
                                     eos_token_id=1)
    student, teacher = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    fsdp.fully_shard(student.transformer.h[0], mesh=mesh)
    distill(student, teacher, "FKL")
    assert all(hasattr(parameter, "full_tensor") for parameter in student.transformer.h[0].parameters())
    fsdp.fully_shard(student, mesh=mesh)
    with pytest.raises(UserError, match="^FSDPGPT2LMHeadModel is split by fully_shard, .*: split its layers alone"):
        distill(student, teacher, "FKL")


@pytest.mark.parametrize("original", [True, False])
def test_a_student_in_one_flat_parameter_is_trained(original, two_processes):
    from torch.distributed.fsdp import FullyShardedDataParallel

    kd = distill(*own_pair(), "FITNET")
    model = FullyShardedDataParallel(kd, use_orig_params=original, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        step = model(IMAGES, LABELS)
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    assert losses[1] < losses[0]


def test_keys_of_the_state_dict_are_paths_for_distributed_checkpoints():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    kd = distill(*own_pair(), "VID")
    assert list(get_model_state_dict(kd)) == list(kd.state_dict())
    with pytest.raises(AttributeError, match="'Distillation' object has no attribute 'method'"):
        kd.method  # noqa: B018


def test_distributed_checkpoints_continue_a_split_distillation(two_processes):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs PyTorch 2.6")
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def trained(steps):
        kd = fsdp.fully_shard(distill(*own_pair(), "VID"), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(kd.learnable_parameters(), 0.1, momentum=0.9)
        for _ in range(steps):
            kd(IMAGES, LABELS).loss.backward()
            optimizer.step()
        return kd, optimizer

    def values(run):
        weights, state = get_state_dict(*run)
        momenta = [entry["momentum_buffer"] for entry in state["state"].values()]
        return [getattr(value, "full_tensor", value.clone)() for value in (*weights.values(), *momenta)]

    run, other = trained(1), trained(2)
    before = values(run)
    assert not torch.equal(before[0], values(other)[0])
    weights, state = get_state_dict(*run)
    set_state_dict(*other, model_state_dict=weights, optim_state_dict=state)
    assert all(map(torch.equal, before, values(other))) and len(before) > 40


def test_timm_exempts_the_same_parameters_of_the_student_from_weight_decay():
    optimisers = pytest.importorskip("timm.optim")
    student, teacher = own_pair()
    student.no_weight_decay = lambda: {"stem.weight"}
    kd = distill(student, teacher, "FITNET")
    made = [optimisers.create_optimizer_v2(module, "sgd", 0.1, weight_decay=0.1) for module in (student, kd)]
    decayed = [{id(parameter) for group in optimiser.param_groups
                if group["weight_decay"] for parameter in group["params"]} for optimiser in made]
    assert decayed[0] == decayed[1] & set(map(id, student.parameters())) and id(student.stem.weight) not in decayed[0]
    assert distill(*own_pair(), "KD").no_weight_decay() == set()


def test_gradients_of_single_samples():
    student, teacher = own_pair()
    kd = distill(student, teacher, "EA-FITNET")
    kd.eval().distiller.training = True  # batch norms by their statistics, so that samples are independent
    kd.training, names = True, dict(kd.named_parameters())

    def loss(parameters, image, label):
        return torch.func.functional_call(kd, parameters, (image[None], label[None])).loss

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(names, IMAGES, LABELS)
    kd(IMAGES, LABELS).loss.backward()
    for name, parameter in names.items():
        torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-4, atol=1e-4)


def transformer(width):
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=16, num_labels=10))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A Trainer around a distillation between two small transformers; nothing is trained."""
    torch.manual_seed(0)
    kd = distill(transformer(8), transformer(16), "EA-KD")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(tmp_path_factory.mktemp("trained")), per_device_eval_batch_size=4, use_cpu=True,
                                  remove_unused_columns=False, label_names=["labels"], report_to="none",
                                  disable_tqdm=True)
    return Trainer(kd, arguments, compute_metrics=lambda found: {
        "right": int((found.predictions.argmax(-1) == found.label_ids).sum()), "shape": found.predictions.shape})


def test_transformers_trainer_evaluates_and_predicts(trainer):
    pytest.importorskip("accelerate")
    kd = trainer.model
    rows = [{"pixel_values": image} for image in IMAGES]
    labelled = [row | {"labels": label} for row, label in zip(rows, LABELS, strict=True)]
    found = trainer.evaluate(labelled)
    logits = kd.student.eval()(IMAGES).logits.detach()
    assert found["eval_shape"] == (6, 10) and found["eval_right"] == int((logits.argmax(1) == LABELS).sum())
    assert found["eval_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, LABELS)), abs=1e-5)
    for data in (labelled, rows):
        predicted = trainer.predict(data)
        torch.testing.assert_close(torch.as_tensor(predicted.predictions), logits)
        assert (predicted.label_ids is None) == (data is rows)


def test_gradient_checkpointing_is_that_of_the_student(trainer):
    kd = trainer.model
    kd.gradient_checkpointing_enable()
    assert kd.student.is_gradient_checkpointing and not kd.teacher.is_gradient_checkpointing
    kd.gradient_checkpointing_disable()
    assert not kd.student.is_gradient_checkpointing
    assert not hasattr(distill(*own_pair(), "KD"), "gradient_checkpointing_enable")
