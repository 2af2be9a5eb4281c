"""Contracts of every registered method, plain and entropy-adaptive."""

import pytest
import torch

from mdistiller.config import active_cfg, load_cfg
from mdistiller.distillers import DISTILLERS, Distiller, register
from mdistiller.distillers.base import weighted_mean
from mdistiller.errors import UserError
from tests.distillers.support import Fixed, distiller_of, tiny_batch, tiny_distiller

NAMES = sorted(DISTILLERS)
HOSTS = [name for name in NAMES if not name.startswith("EA-")]


@pytest.mark.parametrize("name", HOSTS)
def test_every_method_has_its_ea_variant_which_is_the_same_class_with_weighting_on(name):
    variant = DISTILLERS[f"ea-{name.lower()}"]
    assert issubclass(variant, DISTILLERS[name]) and variant.weighted and not DISTILLERS[name].weighted


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_train_the_student_and_its_modules_and_leave_the_teacher_alone(name):
    distiller = tiny_distiller(name)
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    teacher = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=1e-3)
    touched, given = set(), what_the_teacher_gives(distiller)
    for step in range(2):
        torch.manual_seed(step)
        logits, losses = distiller(**tiny_batch(seed=step))
        assert logits.shape == (4, 10) and "ce" in losses
        assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        touched |= {key for key, parameter in distiller.named_parameters() if parameter.grad is not None}
        optimizer.step()
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())
    trained = [key for key, parameter in distiller.named_parameters() if parameter.requires_grad]
    if not distiller.varying_modules:
        assert touched == set(trained), f"never trained: {sorted(set(trained) - touched)}"
    student = [key for key in trained if key.startswith("student.")]
    assert all(not torch.equal(before[key], dict(distiller.named_parameters())[key]) for key in student)
    moved = {key for key, value in distiller.teacher.state_dict().items() if not torch.equal(value, teacher[key])}
    statistics = {key for key in teacher if "running_" in key or "num_batches" in key}
    assert moved == set() if distiller.teacher_mode == "eval" else moved <= statistics
    assert given or not distiller.needs_teacher
    assert all(tensor._version == version for tensor, version in given), "runs that train together share these tensors"


def what_the_teacher_gives(distiller):
    """A list that fills with the tensors of the teacher's outputs, each with its count of changes in place."""
    given, own = [], distiller.run_teacher

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple):
            for child in value.values() if isinstance(value, dict) else value:
                yield from tensors(child)

    def run_teacher(*inputs):
        output = own(*inputs)
        given.extend((tensor, tensor._version) for tensor in tensors(output))
        return output

    distiller.run_teacher = run_teacher
    return given


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_two_doubles_what_ea_weighs_and_nothing_else(name):
    def run(sample_weight=None):
        distiller = tiny_distiller(name)
        if sample_weight:
            distiller.sample_weight = sample_weight
        torch.manual_seed(0)
        return distiller(**tiny_batch())[1]

    once = run(lambda student, teacher: torch.ones(len(teacher)))
    twice = run(lambda student, teacher: torch.full((len(teacher),), 2.0))
    assert once.keys() == twice.keys()
    for key, loss in once.items():
        factor = 1 if key in ("ce", *DISTILLERS[name].batch_terms) else 2
        torch.testing.assert_close(twice[key], factor * loss, msg=key)


@pytest.mark.parametrize("name", HOSTS)
def test_from_the_settled_epoch_on_losses_and_gradients_stay_the_same(name):
    def step(late):
        distiller = tiny_distiller(name, teacher="resnet8", image_size=16)
        batch = tiny_batch(image_size=16) | {"epoch": distiller.settled_epoch + late}
        torch.manual_seed(0)
        losses = distiller(**batch)[1]
        sum(losses.values()).backward()
        return losses, [parameter.grad for parameter in distiller.learnable_parameters()]

    (losses, gradients), (later, later_gradients) = step(0), step(100)
    assert losses == later
    assert all(one is other is None or torch.equal(one, other)
               for one, other in zip(gradients, later_gradients, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_not_in_the_state_and_moves_with_the_module(name):
    distiller = tiny_distiller(name).double()
    assert next(distiller.teacher.parameters()).dtype == torch.float64
    assert not any("teacher" in key for key in distiller.state_dict())
    ids = {id(parameter) for parameter in distiller.parameters()}
    assert not any(id(parameter) in ids for parameter in distiller.teacher.parameters())
    own = sum(p.numel() for p in distiller.learnable_parameters()) - sum(
        p.numel() for p in distiller.student.parameters() if p.requires_grad
    )
    assert distiller.extra_parameters() == own


@pytest.mark.parametrize("name", NAMES)
def test_in_eval_mode_the_output_is_the_students_logits(name):
    distiller = tiny_distiller(name).eval()
    image = tiny_batch()["image"]
    with torch.no_grad():
        logits = distiller(image)
    assert logits.shape == (4, 10)
    if type(distiller).deployed is Distiller.deployed:
        assert torch.equal(logits, distiller.student(image).logits)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_keeps_the_losses_in_float32_and_close(name):
    def run(enabled):
        distiller = tiny_distiller(name, image_size=16)  # most CPUs emulate bfloat16, slowly
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return distiller(**tiny_batch(image_size=16))[1]

    exact, low = run(False), run(True)
    for key, loss in low.items():
        assert loss.dtype == torch.float32 and torch.isfinite(loss), key
    torch.testing.assert_close(sum(low.values()), sum(exact.values()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", [name for name in NAMES if DISTILLERS[name].inputs == "logits"])
@pytest.mark.parametrize("scale", [1e3, 1e-3])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_logit_methods_are_finite_for_extreme_logits_and_two_classes(name, scale, num_classes):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (Fixed(scale * torch.randn(4, num_classes, generator=generator)) for _ in range(2))
    info = {"num_classes": num_classes, "num_train": 4, "image_size": 32}
    distiller = distiller_of(name, student, teacher, data_info=info)
    batch = tiny_batch(num_classes)
    _, losses = distiller(**batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()) and torch.isfinite(student.logits.grad).all()


BLIND = [  # the others standardize a part of their losses by themselves, or have no teacher
    name for name in HOSTS
    if DISTILLERS[name].inputs == "logits" and DISTILLERS[name].standardizes and DISTILLERS[name].needs_teacher
]


@pytest.mark.parametrize("name", BLIND)
def test_logit_standardization_makes_logit_methods_blind_to_the_scale_of_the_teacher(name):
    def run(factor):
        distiller = tiny_distiller(name, "DISTILLER.LS", True)
        original = distiller.teacher.fc.weight.data, distiller.teacher.fc.bias.data
        for tensor in original:
            tensor.mul_(factor)
        torch.manual_seed(0)
        losses = distiller(**tiny_batch())[1]
        return sum(loss for key, loss in losses.items() if key not in ("ce", *distiller.batch_terms))

    torch.testing.assert_close(run(1.0), run(3.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_the_log_says_so_where_logit_standardization_has_no_effect(name, caplog):
    def losses(standardized):
        caplog.clear()
        distiller = tiny_distiller(name, "DISTILLER.LS", standardized)
        torch.manual_seed(0)
        return {key: loss.item() for key, loss in distiller(**tiny_batch())[1].items()}

    plain = losses(False)
    assert "has no effect" not in caplog.text
    same = losses(True) == plain
    assert same == ("DISTILLER.LS True has no effect" in caplog.text)


@pytest.mark.parametrize("method, opts, words", [
    ("KD", ["EA.KIND", "constant"], "EA.KIND has no effect: KD does not weigh samples, EA-KD does"),
    ("EA-KD", ["DKD.BETA", 2], "DKD.BETA has no effect: KD does not read it"),
    ("EA-KD", ["DKD.BETA", 2, "AT.P", 3], "AT.P, DKD.BETA have no effect: KD does not read them"),
    ("EA-MLD", ["EA.KIND", "constant", "KD.TEMPERATURE", 2], ""),
    ("EA-KD", ["DISTILLER.t", 2], ""),
    ("DKD", ["EA.TEMPERATURE", 2, "KD.TEMPERATURE", 2, "LOG.ENTROPY_TRACE", 9], ""),  # the trace reads both
    ("NONE", ["EA.TEMPERATURE", 2, "LOG.ENTROPY_TRACE", 9], "EA.TEMPERATURE has no effect"),
    ("DKD", ["EA.COMPAT", "release", "DISTILLER.LS", True], ""),  # it chooses the factor of both terms
])
def test_the_log_names_overrides_that_the_method_does_not_read(method, opts, words, caplog):
    tiny_distiller(method, *opts)
    assert words in caplog.text and bool(words) == ("no effect" in caplog.text)


@pytest.mark.parametrize("name", ["KD", "EA-MLD"])
def test_stored_teacher_logits_of_each_view_replace_its_forward_passes(name):
    distiller = tiny_distiller(name)
    batch = tiny_batch()
    with torch.no_grad():
        stored = [distiller.teacher(batch[view]).logits for view in distiller.views]
    live = distiller(**batch)[1]
    distiller.run_teacher = None  # must not be called
    assert distiller(**batch, logits_teacher=torch.stack(stored))[1] == live
    if len(stored) == 1:
        assert distiller(**batch, logits_teacher=stored[0])[1] == live


def test_a_loss_that_is_not_one_number_per_sample_is_named_and_refused():
    with pytest.raises(ValueError, match="'hint' has shape \\(4, 3\\), expected \\(4,\\)"):
        weighted_mean(torch.zeros(4, 3), torch.ones(4), "hint")


def test_a_method_without_released_ea_code_says_so():
    @register("TOY-UNRELEASED")
    class Toy(Distiller):
        """A method for this test."""

    try:
        with pytest.raises(UserError, match="EA.COMPAT: no released code weighs TOY-UNRELEASED"):
            tiny_distiller("EA-TOY-UNRELEASED", "EA.COMPAT", "release")
    finally:
        del DISTILLERS["TOY-UNRELEASED"], DISTILLERS["EA-TOY-UNRELEASED"]


def test_a_missing_view_is_named():
    batch = tiny_batch()
    del batch["image_strong"]
    with pytest.raises(ValueError, match="MLD needs 'image_strong', a second view of the images"):
        tiny_distiller("MLD")(**batch)


def test_shapes_of_maps_that_a_network_does_not_have_are_an_error_of_one_line():
    distiller = tiny_distiller("KD")
    student, teacher = distiller.feature_shapes()
    assert len(student) == len(teacher) == 4 and all(len(shape) == 4 for shape in student + teacher)
    with pytest.raises(UserError, match="^KD cannot use .*: maps of student .* none; of teacher .* none$"):
        distiller.feature_shapes(key="unknown")


@pytest.mark.parametrize("terms, line", [
    ({"ce": torch.zeros(4)}, "KD: sample_losses: 'ce' is a loss of the task"),
    ({"own": torch.zeros(4, 3)}, "KD: loss 'own' has shape \\(4, 3\\), expected \\(4,\\)"),
    (torch.zeros(4), "KD: sample_losses: expected a dict of tensors by name; found Tensor"),
    ({"own": 0.5}, "KD: sample_losses: expected a dict of tensors by name; found own float"),
])
def test_losses_of_another_form_are_refused_with_the_names_of_method_and_loss(terms, line, monkeypatch):
    distiller = tiny_distiller("EA-KD")
    monkeypatch.setattr(distiller, "sample_losses", lambda *outputs, **batch: terms)
    with pytest.raises(UserError, match=f"^{line}"):
        distiller(**tiny_batch())


@pytest.mark.parametrize("name", HOSTS)
def test_a_method_reads_the_nodes_that_it_declares_and_no_other(name):
    """It can be built and trained with only its own node and those of `reads` in the tree."""
    cls, cfg = DISTILLERS[name], load_cfg(None, ["DISTILLER.TYPE", name])
    own = {cls.config_key, *cls.reads}
    others = {method.config_key for method in DISTILLERS.values() if method.defaults} - own
    distiller = tiny_distiller(name)
    assert not others & set(distiller.cfg) and not others & set(active_cfg(cfg))
    assert {"SOLVER", "EA", *(own & set(cfg))} <= set(distiller.cfg)
    distiller(**tiny_batch())
    for node in sorted(others)[:3]:
        for read in (lambda node=node: distiller.cfg[node], lambda node=node: getattr(distiller.cfg, node)):
            with pytest.raises(UserError, match=f"{name} reads the config node {node} without declaring it"):
                read()
    with pytest.raises(AttributeError):
        distiller.cfg.NO_NODE  # noqa: B018


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_scale_decoupled_distillation_keeps_the_nodes_whose_settings_it_takes(loss):
    opts = ["DISTILLER.TYPE", "SDD", "SDD.LOSS", loss]
    assert {"SDD", "KD", "DKD"} <= set(active_cfg(load_cfg(None, opts)))
    assert active_cfg(load_cfg(None, opts)) != active_cfg(load_cfg(None, [*opts, "KD.TEMPERATURE", "2"]))
    assert tiny_distiller("SDD", "SDD.LOSS", loss, "SDD.WARMUP", 7).warmup == (7 if loss == "dkd" else 0)
