"""The library for users' training loops: its numbers, accepted inputs, and error messages."""

import importlib
import pickle
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mdistiller
from mdistiller.distillers import DISTILLERS
from mdistiller.errors import UserError
from mdistiller.library import Configured, distill, from_config
from mdistiller.library.tasks import Texts
from mdistiller.losses import dkd_loss, ea_weight, kd_loss
from mdistiller.models import build_model
from tests.distillers.support import tiny_batch, tiny_distiller
from tests.engine.support import REPOSITORY, SMALL, few_test_images, run

IMAGES, LABELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6)


class Own(nn.Module):
    """A small user network whose output is made by `wrap`."""

    def __init__(self, width=8, wrap=nn.Identity()):  # noqa: B008
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc, self.wrap = nn.Linear(2 * width, 10), wrap

    def forward(self, x):
        return self.wrap(self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3))))


def own_pair(**options):
    torch.manual_seed(0)
    return Own(**options), Own(16)


def unbuilt(kind, name):
    """A network of a part of torchvision.models without numbers."""
    with torch.device("meta"):
        keywords = {} if kind == "video" else {"weights_backbone": None}
        return getattr(importlib.import_module(f"torchvision.models.{kind}"), name)(**keywords)


@pytest.mark.parametrize("method", ["EA-DKD", "CRD"])
def test_an_epoch_of_a_loop_is_that_of_the_trainer_bit_for_bit(method, tmp_path):
    short = ["SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]", "SOLVER.LR", 0.05]
    folder = run(tmp_path, method, *short)
    options = ["DISTILLER.TYPE", method, "LOG.PREFIX", str(tmp_path), *short]
    with few_test_images():
        kd = from_config(None, *SMALL, *options)
    optimizer = torch.optim.SGD(kd.learnable_parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    kd.train()
    for batch in kd.batches(epoch=1):
        optimizer.zero_grad()
        kd(**batch).loss.backward()
        optimizer.step()
    trained = torch.load(folder / "student_latest.pth", weights_only=True)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in kd.student.state_dict().items())
    whole = torch.load(folder / "latest.pth", weights_only=True)["model"]
    assert all(torch.equal(value, whole[name]) for name, value in kd.state_dict().items())
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert f'"test_top1": {kd.evaluate()["top1"]}' in line


@pytest.mark.parametrize("method", ["EA-KD", "EA-VID", "MLD"])
def test_distill_around_our_networks_gives_the_losses_of_the_same_distiller(method):
    expected, batch = tiny_distiller(method, "EA.TEMPERATURE", 2.0), tiny_batch()
    torch.manual_seed(0)
    kd = distill(build_model("resnet8", 10), build_model("resnet14", 10), method, ea_temperature=2.0)
    names = expected.state_dict()
    assert list(kd.state_dict()) == list(names)
    kd.load_state_dict(names)
    kd.epoch = batch.pop("epoch")
    losses = expected(**batch, epoch=2)[1]
    out = kd(batch.pop("image"), batch.pop("target"), **batch)
    assert list(out.losses) == list(losses) and all(torch.equal(out.losses[name], losses[name]) for name in losses)


def test_losses_equal_those_of_the_pure_functions():
    student, teacher = own_pair()
    kd = distill(student, teacher, "EA-DKD", ALPHA=1.0, beta=8.0, T=4.0, CE_WEIGHT=0.5)
    out = kd(IMAGES, LABELS)
    z_s, z_t = out.logits, teacher(IMAGES)
    weight = mdistiller.ea_weight(z_s, z_t)
    torch.testing.assert_close(out.weight, weight)
    loss = (weight * mdistiller.losses.dkd_loss(z_s, z_t, LABELS, 1.0, 8.0, 4.0)).mean()
    torch.testing.assert_close(out.losses["dkd"], loss)  # without an epoch the warm-up counts as finished
    torch.testing.assert_close(out.losses["ce"], 0.5 * nn.functional.cross_entropy(z_s, LABELS))
    torch.testing.assert_close(kd(IMAGES, LABELS, epoch=5).losses["dkd"] * 4, loss)  # 5 of its 20 epochs
    assert mdistiller.losses.dkd_loss is dkd_loss and mdistiller.ea_weight is ea_weight


def test_without_an_epoch_every_ramp_counts_as_finished():
    kd = distill(*own_pair(), "SDD", LOSS="nkd")  # its warm-up is a setting of another method, 20 epochs
    losses = [kd(IMAGES, LABELS, epoch=epoch).losses["sdd"].item() for epoch in (None, 2, 1000)]
    assert losses[0] == losses[2] == pytest.approx(10 * losses[1])
    kd = distill(*own_pair(), "CTKD")  # whose ramp is the factor of a reversed gradient
    theta = kd.distiller.temperature.theta
    gradients = [torch.autograd.grad(kd(IMAGES, LABELS, epoch=epoch).loss, theta)[0] for epoch in (None, 1000, 1)]
    assert gradients[0] == gradients[1] and gradients[0].abs() > 40 * gradients[2].abs() > 0


def test_without_labels_and_with_stored_logits():
    student, teacher = own_pair()
    kd = distill(student, teacher, "KD", TEMPERATURE=2.0, KD_WEIGHT=1.0)
    out = kd(IMAGES)
    assert list(out.losses) == ["kd"] and bool((out.weight == 1).all())
    stored = torch.randn(6, 10)
    torch.testing.assert_close(
        kd(IMAGES, teacher_logits=stored).loss, kd_loss(out.logits, stored, 2.0).mean(), rtol=1e-4, atol=1e-5
    )
    for alone in (distill(student, None, "EA-DKD", BETA=2.0), distill(student, teacher, "EA-DKD", BETA=2.0)):
        found = alone(IMAGES, LABELS, teacher_logits=stored)
        torch.testing.assert_close(found.losses["dkd"], (found.weight * dkd_loss(
            found.logits, stored, LABELS, 1.0, 2.0, 4.0)).mean())
    batch, alone = {"x": IMAGES, "label": LABELS}, distill(student, None, "KD")
    assert [finding.name for finding in mdistiller.diagnose(alone, batch)] == ["pass fails"]
    assert mdistiller.diagnose(alone, {**batch, "teacher_logits": stored}) == []
    with pytest.raises(UserError, match="^DKD reads the labels"):
        distill(*own_pair(), "DKD")(IMAGES)
    with pytest.raises(UserError, match="^VID reads the teacher's features: stored logits cannot"):
        distill(*own_pair(), "VID")(IMAGES, LABELS, teacher_logits=stored)
    with pytest.raises(UserError, match="^MLD compares two views of each image"):
        distill(*own_pair(), "MLD")(IMAGES, LABELS)
    with pytest.raises(UserError, match="^CRD remembers every sample"):
        distill(*own_pair(), "CRD", targets=LABELS)(IMAGES, LABELS)


@pytest.mark.parametrize("call", [
    lambda kd: kd(image=IMAGES, labels=LABELS), lambda kd: kd(IMAGES, label=LABELS),
    lambda kd: kd({"x": IMAGES}, LABELS), lambda kd: kd(x=IMAGES, target=LABELS),
    lambda kd: kd({"x": IMAGES, "labels": LABELS}), lambda kd: kd(IMAGES, LABELS.int()),
    lambda kd: kd(IMAGES, LABELS, other="a name that a method may read"),
], ids=range(7))
def test_labels_are_found_wherever_they_are_given(call):
    for method in ("KD", "DKD"):
        kd = distill(*own_pair(), method)
        (first, losses), found = kd(IMAGES, LABELS)[:2], call(kd)
        assert list(losses) == list(found.losses) and list(losses)[0] == "ce" and torch.equal(first, found.loss)
    stored = torch.randn(6, 10)
    assert torch.equal(kd(IMAGES, LABELS, teacher_logits=stored).loss,
                       kd({"x": IMAGES, "labels": LABELS, "teacher_logits": stored}).loss)


def test_class_probabilities_are_labels_of_methods_that_do_not_read_the_class():
    kd = distill(*own_pair(), "EA-KD", CE_WEIGHT=1.0)
    mixed = 0.7 * torch.eye(10)[LABELS] + 0.3 * torch.eye(10)[LABELS.flip(0)]
    losses = [kd(IMAGES, labels).losses["ce"] for labels in (mixed, LABELS, LABELS.flip(0))]
    torch.testing.assert_close(losses[0], 0.7 * losses[1] + 0.3 * losses[2])
    torch.testing.assert_close(kd.eval()(IMAGES, torch.eye(10)[LABELS].double()).loss, kd(IMAGES, LABELS).loss)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_first_token_of_a_text_is_no_sample_wherever_the_padding_is(labelled):
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5], [8, 9, 0, 0, 0]])
    mask = (ids > 0).long()
    labels = torch.where(mask > 0, ids, -100) if labelled else None
    batch = Texts.prepare(SimpleNamespace(weighs_all_tokens=True), {"input_ids": ids, "attention_mask": mask}, labels)
    assert batch["positions"].tolist() == [2, 3, 5, 6, 7, 8, 10]
    assert batch["target"].tolist() == [6, 7, 2, 3, 4, 5, 9] and batch["group"].tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert not len(batch["around"])  # a token without a next one is none of them


def test_taps_are_the_outputs_of_the_named_modules():
    student, teacher = own_pair()
    kd = distill(student, teacher, "AT", taps=(["layer2"], ["layer2.2"]))
    out = kd(IMAGES, LABELS)
    maps = student.layer2(student.layer1(student.stem(IMAGES))), teacher.layer2(teacher.layer1(teacher.stem(IMAGES)))
    expected = 1000 * mdistiller.losses.at_loss([maps[0]], [maps[1]]).mean()
    torch.testing.assert_close(out.losses["attention"], expected, rtol=1e-4, atol=1e-6)
    probed = distill(*own_pair(), "AT").distiller.dry_run()
    assert [feat.shape[1:] for feat in probed[0].features["feats"]] == [(8, 16, 16), (8, 8, 8), (16, 4, 4)]
    with pytest.raises(UserError, match=r"^taps: Own has no module 'layer3'; nearest: layer"):
        distill(*own_pair(), "AT", taps=["layer1", "layer3"])
    with pytest.raises(UserError, match="^taps: expected as many of the student as of the teacher; found 1 and 2"):
        distill(*own_pair(), "AT", taps=(["layer1"], ["layer1", "layer2"]))


@pytest.mark.parametrize("wrap", [
    lambda logits: logits, lambda logits: (logits, {}), lambda logits: SimpleNamespace(logits=logits),
    lambda logits: {"logits": logits},
], ids=["tensor", "pair", "object", "mapping"])
def test_networks_may_return_logits_in_any_usual_form(wrap):
    for method in ("EA-KD", "SP"):
        assert torch.isfinite(distill(*own_pair(wrap=wrap), method)(IMAGES, LABELS).loss)


def test_the_teacher_is_outside_of_everything_and_the_student_is_saved_alone():
    student, teacher = own_pair()
    kd = distill(student, teacher, "VID")
    names = {id(parameter) for parameter in kd.learnable_parameters()}
    assert not names & {id(parameter) for parameter in teacher.parameters()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
    kd.train()
    assert student.training and not teacher.training
    assert set(student.state_dict()) == {name[8:] for name in kd.state_dict() if name.startswith("student.")}
    assert any(name.startswith("regressors.") for name in kd.state_dict())
    out = kd.eval()(IMAGES, LABELS)
    assert out.weight is None and list(out.losses) == ["ce"] and not out.logits.isnan().any()
    assert torch.equal(kd(IMAGES).logits, student(IMAGES)) and kd(IMAGES).loss is None
    kd.double()
    assert next(teacher.parameters()).dtype == torch.float64


@pytest.mark.parametrize("method", ["KD", "EA-FITNET", "VID", "REVIEWKD", "EA-PAD", "CRD", "CTKD", "WKD"])
def test_networks_in_double_precision_are_distilled_in_it(method):
    def steps(dtype):
        torch.manual_seed(0)
        kd = distill(Own().to(dtype), Own(16).to(dtype), method, targets=LABELS)
        extra = {"index": LABELS} if method == "CRD" else {}
        return kd, kd(IMAGES.to(dtype), LABELS, **extra), kd.eval()(IMAGES.to(dtype), LABELS)

    (kd, step, evaluated), (_, expected, _) = steps(torch.float64), steps(torch.float32)
    step.loss.backward()
    found = [*step.losses.values(), *evaluated.losses.values(), step.weight, *kd.parameters(), *kd.buffers()]
    assert {tensor.dtype for tensor in found if tensor.is_floating_point()} == {torch.float64}
    assert all(count.dtype == torch.int64 for name, count in kd.named_buffers() if name.endswith("num_batches_tracked"))
    torch.testing.assert_close(step.loss.float(), expected.loss, rtol=1e-4, atol=1e-5)


def test_a_teacher_gets_images_in_its_own_normalisation():
    student, teacher = own_pair()
    mine, its = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    teacher.pretrained_cfg = {"mean": its[0], "std": its[1], "input_size": (3, 32, 32)}  # as timm declares it
    kd = distill(student, teacher, "KD", normalization=mine)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in its)
    expected = teacher((IMAGES * 0.25 + 0.5 - mean) / deviation)
    found = []
    teacher.register_forward_hook(lambda module, args, output: found.append(output))
    kd(IMAGES)
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(kd.eval()(IMAGES).logits, student(IMAGES))  # the student sees the images as they come
    plain = distill(*own_pair(), "KD", normalization=None)
    assert plain.distiller.teacher.inner is plain.teacher


@pytest.mark.parametrize("call, line", [
    (lambda: distill(*own_pair(), "EA-DKD", BTEA=8), "distill: BTEA is no setting of EA-DKD; nearest: BETA"),
    (lambda: distill(*own_pair(), "AT", tap=["layer1"]), "distill: tap is no setting of AT; nearest: taps"),
    (lambda: distill(*own_pair(), "AT", keywords=1), "distill: keywords is no setting of AT; known: "),
    (lambda: distill(*own_pair(), "AT", student_chekpoint="x"),
     "distill: student_chekpoint is no setting of AT; nearest: student_checkpoint, teacher_checkpoint"),
    (lambda: distill(*own_pair(), "KD", ce_weight=1, LOSS={"CE_WEIGHT": 2}),
     "distill: KD.LOSS.CE_WEIGHT is given twice: as ce_weight and as LOSS_CE_WEIGHT"),
    (lambda: distill(*own_pair(), "EA-DKD", BETA="x"), "distill: DKD.BETA: expected float, found 'x'"),
    (lambda: distill(*own_pair(), "DKDD"), "distill: unknown method 'DKDD'; nearest: DKD"),
    (lambda: distill("resnet8", Own(), "KD"), "distill: student 'resnet8' is a name: say its classes"),
    (lambda: distill(Own(), "resnet8", "KD", num_classes=10), "distill: teacher 'resnet8' is a name: say its weights"),
    (lambda: distill(*own_pair(), "KD", teacher_checkpoint="a.pth"), "distill: teacher_checkpoint: goes with a name"),
    (lambda: distill(Own(), None, "VID"), "distill: VID needs a teacher; found None"),
    (lambda: distill(Own(), None, "MLD"), "distill: MLD needs a teacher; found None"),
    (lambda: distill(Own(), None, "EA-KD")(IMAGES), "KD was made without a teacher: kd(x, y, teacher_logits=z)"),
    (lambda: distill(*own_pair(), "CRD"), "distill: CRD remembers every training image"),
    (lambda: distill(None, Own(), "KD"), "distill: student: expected a module or a name; found NoneType"),
    (lambda: distill(*own_pair(), "KD", LOSS={3: 1}), "distill: LOSS_3 is no setting of KD"),
    *((lambda key=key, value=value: distill("resnet8", Own(), **{"num_classes": 10, key: value}),
       f"distill: {key}: expected an integer from 1 to {most}; found {found}") for key, most, value, found in (
        ("num_classes", 10**6, "10", "'10'"), ("num_classes", 10**6, -1, "-1"), ("num_train", 2**31 - 1, 2**31, 2**31),
        ("image_size", 2**14, (32, 32), "(32, 32)"), ("image_size", 2**14, 32.5, "32.5"))),
    *((lambda taps=taps: distill(*own_pair(), "FITNET", taps=taps), "taps: expected a pair of lists of module paths")
      for taps in (3, [0, 1], (None, ["layer1"]), (name for name in "ab"), (["a"], ["b"], ["c"]), [])),
    *((lambda example=example: distill(*own_pair(), "SP", example=example),
       f"distill: example: expected a batch of inputs, a tensor or a mapping of them; found {found}")
      for example, found in (("x", "str"), ([torch.zeros(1, 3, 8, 8)], "list"), ({"x": None}, "NoneType"),
                             (torch.zeros(0, 3, 8, 8), "a tensor (0, 3, 8, 8)"))),
    *((lambda targets=targets: distill(*own_pair(), "CRD", targets=targets), "distill: targets: expected integers")
      for targets in ("abc", [None], [0.5], [[1]], [-1])),
    (lambda: distill(*own_pair(), "CRD", targets=LABELS, num_train=99),
     f"distill: num_train: expected {len(LABELS)}, the number of targets; found 99"),
    *((lambda stored=stored: distill(*own_pair(), "KD")(IMAGES, teacher_logits=stored),
       f"teacher_logits: expected a tensor ({len(IMAGES)}, 10); found {found}") for stored, found in (
        ([[0.0] * 10], "list"), (torch.zeros(1, 10), "a tensor (1, 10)"), (torch.zeros(10), "a tensor (10,)"),
        (torch.zeros(len(IMAGES), 1), f"a tensor ({len(IMAGES)}, 1)"))),
    (lambda: distill(*own_pair(wrap=str), "SP"), "Own returns str; expected logits"),
    (lambda: distill(*own_pair(), "SP", example=torch.zeros(1, 4, 8, 8)), "Own cannot be probed"),
    (lambda: distill(Own(), nn.Linear(2, 10), "AT", image_size=32), "Linear cannot be probed"),
    (lambda: distill(Own(), Own().to("meta"), "AT"), "Own is on the device meta, and shows no features"),
    (lambda: distill(Own(), torch.jit.script(nn.Conv2d(3, 8, 3)), "AT"),
     "RecursiveScriptModule holds modules of TorchScript, which show no features"),
    (lambda: distill(*[Own()] * 2, "KD"), "distill: student and teacher are one object"),
    *((lambda pair=pair: distill(*own_pair(), "KD", normalization=pair), "distill: normalization: expected (mean, dev")
      for pair in ("imagenet", 3, (0.5, 0.5), ((0.5,), (0.5, 0.5)), ((0.5,), (0,)))),
    *((lambda args=args, named=named, method=method: distill(*own_pair(), method, targets=LABELS)(*args, **named), line)
      for method, args, named, line in (
        ("KD", (IMAGES, LABELS), {"labels": LABELS}, "kd() got the labels twice: as target and as labels"),
        ("KD", ({"x": IMAGES, "label": LABELS},), {"labels": LABELS}, "kd() got the labels twice: as labels and as"),
        ("KD", (IMAGES, LABELS), {"teacher_logit": 0}, "kd() has no argument 'teacher_logit'; nearest: teacher_logits"),
        ("KD", (IMAGES,), {"logits_teacher": 0}, "kd() has no argument 'logits_teacher'; nearest: teacher_logits"),
        ("KD", ({"x": IMAGES, "lables": LABELS},), {}, "kd() has no argument 'lables'; nearest: labels"),
        ("KD", (IMAGES,), {"targets": LABELS}, "kd() has no argument 'targets'; nearest: target"),
        ("KD", (IMAGES,), {"epochs": 3}, "kd() has no argument 'epochs'; nearest: epoch"),
        ("MLD", (IMAGES,), {"images_strong": IMAGES}, "kd() has no argument 'images_strong'; nearest: image_strong"),
        ("KD", ((IMAGES, LABELS),), {}, "kd() takes a tensor, or a mapping of the networks' keywords, and labels"),
        ("KD", (IMAGES[:0], LABELS[:0]), {}, "kd() needs a sample at least"),
        ("KD", (IMAGES, LABELS[:4]), {}, "labels: expected one for each sample, 6; found 4"),
        ("KD", (IMAGES, LABELS[:, None]), {}, "labels: expected class numbers (n,) of type torch.int64"),
        ("DKD", (IMAGES, LABELS.tolist()), {}, "labels: expected class numbers (n,) of type torch.int64"),
        ("DKD", (IMAGES, torch.eye(10)[LABELS]), {}, "labels: DKD reads each sample's class"),
        ("KD", (IMAGES,), {"teacher_logits": torch.ones(6, 10, dtype=int)},
         "teacher_logits: expected a tensor (6, 10); found a tensor (6, 10) of torch.int64"),
        ("CRD", (IMAGES, LABELS), {"index": [0] * 6}, "index: expected the numbers of the samples, a tensor (n,)"),
        ("CRD", (IMAGES, LABELS), {"index": LABELS[:4]}, "index: expected the numbers of the samples, a tensor (n,)"),
        ("KD", (IMAGES, LABELS), {"epoch": 0}, "kd: epoch: counts from 1; found 0"))),
    *((lambda kind=kind, name=name, method=method: distill(unbuilt(kind, name), Own(), method), line)
      for kind, name, method, line in (
        ("detection", "fasterrcnn_mobilenet_v3_large_320_fpn", "EA-KD", "distill: student: FasterRCNN gives no logits"),
        ("segmentation", "lraspp_mobilenet_v3_large", "EA-REVIEWKD", "distill: student: LRASPP gives no logits (n, C)"),
        ("video", "r3d_18", "EA-REVIEWKD", "VideoResNet cannot be probed"))),
    (lambda: setattr(distill(*own_pair(), "KD"), "student", Own()), "kd.student cannot be replaced: give distill the"),
    (lambda: setattr(distill(*own_pair(), "KD"), "epoch", -1), "kd: epoch: counts from 1; found -1"),
    (lambda: next(Configured.batches(SimpleNamespace(), 0)), "kd: epoch: counts from 1; found 0"),
], ids=range(76))
def test_errors_are_reported_in_one_line(call, line):
    with pytest.raises(UserError) as told:
        call()
    assert str(told.value).startswith(line) and "\n" not in str(told.value)


def test_settings_of_nodes_that_a_method_reads_and_names_of_networks():
    kd = distill("resnet8", "resnet14", "MLD", num_classes=10, teacher_checkpoint="random", temperature=7,
                 KD_KD_WEIGHT=2)
    assert (kd.distiller.temperature, kd.distiller.kd_weight) == (7.0, 2.0)
    kd = distill(*own_pair(), "KD", LOSS={"CE_WEIGHT": 0.25}, EA_KIND="constant", LS=True)
    assert kd.distiller.ce_weight == 0.25 and kd.distiller.logit_standardization


@pytest.mark.parametrize("number", [torch.tensor(7), torch.tensor(7.0).numpy()[()], torch.tensor(7).numpy()[()]])
def test_numbers_of_other_libraries_are_settings(number):
    assert distill(*own_pair(), "KD", temperature=number).distiller.temperature == 7.0


def test_copies_and_pickles_are_complete(caplog):
    assert all(pickle.loads(pickle.dumps(method)) is method for method in DISTILLERS.values())
    kd = distill(*own_pair(), "EA-VID")
    kd(IMAGES, LABELS).loss.backward()
    for other in (deepcopy(kd), pickle.loads(pickle.dumps(kd))):
        assert other.student is not kd.student and other.student is other.distiller.student.inner
        assert torch.equal(other.eval()(IMAGES).logits, kd.eval()(IMAGES).logits)
        optimizer = torch.optim.SGD(other.train().learnable_parameters(), 0.1)
        for _ in range(2):  # the copy's first update is watched anew
            other(IMAGES, LABELS).loss.backward()
            optimizer.step()
    other(IMAGES, LABELS)
    assert not other.checked and not [record for record in caplog.records if "optimiser" in record.message]


def test_the_network_to_keep_is_named_where_it_is_not_the_student(caplog):
    kd = distill(build_model("resnet8", 10), build_model("resnet8", 10), "KD")
    assert kd.deployed() is kd.student and not caplog.records
    kd = distill(*own_pair(), "SIMKD")
    assert [record.message for record in caplog.records] == [
        "SIMKD trains more than the student gives: evaluate and keep kd.deployed(), not kd.student"]
    logits = kd.eval()(IMAGES).logits
    assert torch.equal(kd.deployed()(IMAGES).logits, logits) and not torch.equal(kd.student(IMAGES), logits)


def test_methods_are_listed_with_a_line_each():
    lines = mdistiller.methods()
    assert set(lines) == set(DISTILLERS) and all(line and "\n" not in line for line in lines.values())


def test_the_package_and_its_losses_import_torch_alone():
    code = """
import sys, torch
before = set(sys.modules)
import mdistiller
assert not any(name.startswith("mdistiller.") for name in sys.modules)
import mdistiller.losses
new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"torch"}
assert new == {"mdistiller"}, new
assert {name.split(".")[1] for name in sys.modules if name.startswith("mdistiller.")} == {"losses", "functional"}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
