"""`diagnose` names each of the planted faults in one line, and finds none in a correct setup."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.distillers import DISTILLERS, Distiller, register
from mdistiller.errors import UserError
from mdistiller.library import distill
from mdistiller.library.doctor import diagnose
from mdistiller.library.doctor.finding import shared_storage

CLASSES, SIDE, MEAN, DEVIATION = 8, 8, 0.5, 0.25
PIXELS = torch.rand(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))  # an image for each class
PIXELS[:, 1] = PIXELS[0, 1]  # red and blue alone, off the diagonal, tell classes apart
PIXELS.diagonal(dim1=2, dim2=3)[:] = 0.5


def normalised(pixels):
    return (pixels - MEAN) / DEVIATION


class Student(nn.Module):
    def __init__(self, classes=CLASSES, wrap=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.fc, self.wrap = nn.Linear(8, classes), wrap

    def forward(self, x):
        return self.wrap(self.fc(self.body(x).mean((2, 3))))


class Teacher(nn.Module):
    """A nearest-neighbour classifier, correct on every image in its library's normalisation."""

    pretrained_cfg = {"mean": (MEAN,) * 3, "std": (DEVIATION,) * 3, "input_size": (3, SIDE, SIDE)}

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        pictures = normalised(PIXELS).flatten(1)
        self.body, self.drop = nn.Conv2d(3, 3, 1), nn.Dropout(0.3)
        self.fc, self.wrap = nn.Linear(pictures.shape[1], CLASSES), wrap
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(3)[:, :, None, None])
            self.body.bias.zero_()
            self.fc.weight.copy_(pictures / 60)
            self.fc.bias.copy_(-pictures.square().sum(1) / 120)

    def forward(self, x):
        return self.wrap(self.fc(self.drop(self.body(x).flatten(1))))


def healthy(method="KD", student=None, teacher=None, **settings):
    torch.manual_seed(1)
    return distill(student or Student(), teacher or Teacher(), method, image_size=SIDE, **settings)


def pixels_and_labels(number=40):
    generator = torch.Generator().manual_seed(2)
    target = torch.randperm(number, generator=generator) % CLASSES
    noise = 0.02 * torch.randn(number, 3, SIDE, SIDE, generator=generator)
    return (PIXELS[target] + noise).clamp(0, 1), target


P, Y = pixels_and_labels()
X = normalised(P)


@pytest.mark.parametrize("method, batch", [
    ("KD", (X, Y)), ("EA-DKD", (X, Y)), ("EA-VID", (X, Y)), ("KD", X),
    ("MLD", {"image": X, "target": Y, "image_strong": X}),
    ("CRD", {"image": X, "target": Y, "index": torch.arange(40)}),
])
def test_a_correct_setup_gives_no_finding_and_is_not_changed(method, batch):
    kd = healthy(method, targets=Y)
    optimizer = torch.optim.SGD(kd.learnable_parameters(), 0.1)
    state, draws = deepcopy(kd.state_dict()), torch.get_rng_state()
    assert diagnose(kd, batch, optimizer=optimizer, checkpoint=kd.teacher.state_dict()) == []
    assert all(torch.equal(value, state[name]) for name, value in kd.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws) and kd.training and kd.checked
    assert all(parameter.grad is None for parameter in kd.parameters())


@pytest.mark.parametrize("mean, deviation", [(0.4, 0.05), (0.0, 1.0)])
def test_images_in_a_normalisation_of_their_own_are_no_fault(mean, deviation):
    kd = healthy(normalization=((mean,) * 3, (deviation,) * 3))
    once = (P - mean) / deviation
    assert diagnose(kd, (once, Y)) == []
    assert ("normalised twice" in {found.name for found in diagnose(kd, ((once - mean) / deviation, Y))}) == (mean > 0)


def with_teacher(change, method="KD", **settings):
    kd = healthy(method, **settings)
    change(kd.teacher)
    return kd, (X, Y), {}


def with_student(change, method="KD"):
    kd = healthy(method)
    change(kd.student)
    return kd, (X, Y), {}


def with_batch(*batch):
    return healthy(), batch, {}


def with_optimizer(parameters, method="VID", rate=0.1):
    kd = healthy(method)
    return kd, (X, Y), {"optimizer": torch.optim.SGD(parameters(kd), rate)}


def with_loss(loss, temperature=4.0):
    return healthy(temperature=temperature), (X, Y), {"loss": loss}


def with_checkpoint(change):
    kd = healthy()
    return kd, (X, Y), {"checkpoint": change(kd.teacher.state_dict())}


def with_stored(logits):
    kd = healthy()
    return kd, {"image": X, "target": Y, "teacher_logits": logits(kd.teacher(X).detach())}, {}


def with_stored_alone(logits):
    """Stored logits of the teacher, in place of a teacher."""
    torch.manual_seed(1)
    kd = distill(Student(), None, "EA-KD", image_size=SIDE)
    return kd, {"image": X, "target": Y, "teacher_logits": logits(Teacher().eval()(X).detach())}, {}


def a_shared_layer():
    teacher, student = Student(), Student()
    student.fc = teacher.fc
    return healthy(student=student, teacher=teacher), (X, Y), {}


def fill(module, value):
    with torch.no_grad():
        next(module.parameters()).fill_(value)


def made_for_224(teacher):
    teacher.pretrained_cfg = {**Teacher.pretrained_cfg, "input_size": (3, 224, 224)}
    fill(teacher.fc, 0.0)


def own_method(loss, name):
    """A method with this loss of (student, teacher), registered during the test."""
    method = type(name, (Distiller,), {"sample_losses": lambda self, student, teacher, **batch:
                                       {"own": loss(student.logits, teacher.logits)}, "__doc__": "Planted."})
    if name not in DISTILLERS:
        register(name)(method)
    kd = healthy(name)
    for key in (name, f"EA-{name}"):
        del DISTILLERS[key]
    return kd, (X, Y), {}


def half_teacher():
    """A teacher in float16 whose logits overflow it."""
    def in_half(logits):
        return (1e5 * logits).half()
    return healthy(teacher=Teacher(wrap=in_half)), (X, Y), {}


def with_places(logits):
    """Logits (n, C, 2), as of two pixels."""
    return torch.stack([logits, 2 * logits], dim=2)


def kl(student, teacher, temperature=4.0, reduction="batchmean", wrong_way=False):
    if wrong_way:
        student, teacher = teacher, student
    return F.kl_div(F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction=reduction)


FAULTS = {
    "shared parameters": a_shared_layer,
    "student frozen": lambda: with_student(lambda net: net.requires_grad_(False)),
    "student in float16": lambda: with_student(lambda net: net.half()),
    "student not finite": lambda: with_student(lambda net: fill(net, float("nan"))),
    "teacher in train mode": lambda: with_teacher(lambda net: net.fc.train()),
    "dropout in the teacher": lambda: with_teacher(lambda net: net.drop.train()),
    "dropout in the teacher, in a function": lambda: (
        healthy(teacher=Teacher(wrap=lambda logits: F.dropout(logits, 0.5))), (X, Y), {}),
    "teacher not frozen": lambda: with_teacher(lambda net: net.requires_grad_(True)),
    "teacher not finite": lambda: with_teacher(lambda net: fill(net.fc, float("inf"))),
    "teacher without statistics": lambda: (healthy(teacher=Student()), (X, Y), {}),
    "teacher at chance": lambda: with_teacher(lambda net: fill(net.fc, 0.0)),
    "order of classes": lambda: with_teacher(lambda net: net.fc.load_state_dict(
        {name: value.roll(3, 0) for name, value in net.fc.state_dict().items()})),
    "labels off by one": lambda: with_batch(X, (Y + 1) % CLASSES),
    "labels from 1": lambda: with_batch(X, Y + 1),
    "label out of range": lambda: with_batch(X, torch.where(Y == 3, 255, Y)),
    "form of the labels": lambda: with_batch(X, F.one_hot(Y, CLASSES)),
    "form of the labels, a list": lambda: with_batch(X, Y.tolist()),
    "form of the labels, for a method that reads classes": lambda: (
        healthy("DKD"), (X, F.one_hot(Y, CLASSES).float()), {}),
    "number of labels": lambda: with_batch(X, Y[:4]),
    "one class": lambda: with_batch(X[Y == 1].repeat(8, 1, 1, 1), Y[Y == 1].repeat(8)),
    "number of classes": lambda: (healthy(student=Student(classes=9)), (X, Y), {}),
    "shape of logits": lambda: (
        healthy("EA-KD", student=Student(wrap=with_places), teacher=Student(wrap=with_places)), (X, None), {}),
    "shape of logits, unweighted": lambda: (
        healthy(student=Student(wrap=with_places), teacher=Student(wrap=with_places)), (X, None), {}),
    "one logit": lambda: (healthy(student=Student(classes=1), teacher=Student(classes=1)), (X, 0 * Y), {}),
    "no labels": lambda: with_batch(X, 0 * Y - 100),
    "type of the weights": lambda: with_teacher(lambda net: net.double()),
    "softmax in the teacher": lambda: (healthy(teacher=Teacher(wrap=lambda z: z.softmax(1))), (X, Y), {}),
    "softmax in the student": lambda: (healthy(student=Student(wrap=lambda z: z.softmax(1))), (X, Y), {}),
    "log-softmax in the teacher": lambda: (healthy(teacher=Teacher(wrap=lambda z: z.log_softmax(1))), (X, Y), {}),
    "constant student": lambda: with_student(lambda net: fill(net.fc, 0.0)),
    "overflow": half_teacher,
    "teacher without doubt": lambda: (healthy("EA-KD", teacher=Teacher(wrap=lambda z: 1000 * z)), (X, Y), {}),
    "equal outputs": lambda: (healthy(student=Teacher(), teacher=Teacher()), (X, Y), {}),
    "normalised twice": lambda: with_batch(normalised(X), Y),
    "not normalised": lambda: with_batch(P, Y),
    "images of 0 to 255": lambda: with_batch(255 * P, Y),
    "images of 0 to 255, normalised": lambda: with_batch(normalised(255 * P), Y),
    "type of the images": lambda: with_batch((255 * P).to(torch.uint8), Y),
    "images not finite": lambda: with_batch(X / 0, Y),
    "channels last": lambda: with_batch(X.permute(0, 2, 3, 1), Y),
    "order of channels": lambda: with_batch(X.flip(1), Y),
    "upside down": lambda: with_batch(X.flip(2), Y),
    "axes exchanged": lambda: with_batch(X.mT, Y),
    "equal images": lambda: with_batch(X[:1].expand(40, 3, 8, 8), Y),
    "blank image": lambda: with_batch(torch.cat([X[:39], 0 * X[:1]]), Y),
    "size of the images": lambda: with_teacher(made_for_224),
    "batch norm of one sample": lambda: with_batch(X[:1], Y[:1]),
    "module not in the optimiser": lambda: with_optimizer(lambda kd: kd.student.parameters()),
    "student not in the optimiser": lambda: with_optimizer(lambda kd: kd.distiller.regressors.parameters()),
    "teacher in the optimiser": lambda: with_optimizer(
        lambda kd: [*kd.learnable_parameters(), *kd.teacher.parameters()], "KD"),
    "learning rate zero": lambda: with_optimizer(lambda kd: kd.learnable_parameters(), rate=0.0),
    "loss detached": lambda: own_method(lambda s, t: (s.detach() - t).square().mean(1), "PLANTED1"),
    "loss zero": lambda: own_method(lambda s, t: 0 * s.sum(1), "PLANTED2"),
    "loss not finite": lambda: own_method(lambda s, t: (s.softmax(1) - 1).log().sum(1), "PLANTED3"),
    "loss without a say": lambda: own_method(lambda s, t: 1e-7 * (s - t).square().mean(1), "PLANTED4"),
    "own loss detached": lambda: with_loss(lambda s, t: kl(s.detach(), t)),
    "prefix in the checkpoint": lambda: with_checkpoint(lambda own: {f"module.{key}": v for key, v in own.items()}),
    "checkpoint incomplete": lambda: with_checkpoint(lambda own: {"model": {"fc.bias": own["fc.bias"]}}),
    "checkpoint of another network": lambda: with_checkpoint(lambda own: {**own, "fc.bias": torch.zeros(9)}),
    "checkpoint not loaded": lambda: with_checkpoint(lambda own: {key: value + 1 for key, value in own.items()}),
    "softmax in the teacher, stored": lambda: with_stored_alone(lambda logits: logits.softmax(1)),
    "teacher at chance, stored": lambda: with_stored_alone(lambda logits: logits.roll(1, 0)),
    "stored logits of another teacher": lambda: with_stored(lambda logits: torch.randn_like(logits)),
    "stored logits in another order": lambda: with_stored(lambda logits: logits.roll(1, 0)),
    "stored logits of another shape": lambda: with_stored(lambda logits: logits[:, :3]),
    "stored logits not finite": lambda: with_stored(lambda logits: 1e6 * logits.half()),
    "eval mode": lambda: (healthy().eval(), (X, Y), {}),
    "pass fails": lambda: with_batch(X[:, :2], Y),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_in_one_line(name):
    kd, batch, options = FAULTS[name]()
    found = {finding.name: str(finding) for finding in diagnose(kd, batch, **options)}
    assert name.split(",")[0] in found, found
    assert all("\n" not in line and len(line) < 400 for line in found.values())


def test_a_loss_that_is_zero_by_design_is_no_fault():
    kd = distill("resnet8", "resnet8", "FCFD", num_classes=CLASSES, teacher_checkpoint="random", image_size=SIDE,
                 EXTRA_TYPE="t2s", EXTRA_PATHS=1)  # no path leads into the teacher
    assert kd(X, Y).losses["functional"] == 0
    assert "loss zero" not in {finding.name for finding in diagnose(kd, (X, Y))}
    kd, batch = healthy("CRLD", TAU_W=1.0, TAU_S=1.0), {"image": X, "target": Y, "image_strong": X}  # never confident
    assert kd(**batch).losses["cross_weak"] == 0 and diagnose(kd, batch) == []


def test_stored_logits_of_a_teacher_are_no_fault(caplog):
    kd, batch, _ = with_stored_alone(lambda logits: logits)
    assert diagnose(kd, batch) == []
    kd(**batch)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("words, loss", {
    "without the square of the temperature (temperature 4)": kl,
    "times the square of the temperature twice": lambda s, t: 256 * kl(s, t),
    "times the temperature, not its square": lambda s, t: 4 * kl(s, t),
    "the divergence the wrong way round": lambda s, t: 16 * kl(s, t, wrong_way=True),
    "divided by the number of classes: reduction='mean'": lambda s, t: 16 * kl(s, t, reduction="mean"),
    "a sum over the batch: reduction='sum'": lambda s, t: 16 * kl(s, t, reduction="sum"),
    "probabilities given to kl_div": lambda s, t: 16 * F.kl_div((s / 4).softmax(1), (t / 4).softmax(1),
                                                                reduction="batchmean"),
    "logits which were softmaxed before": lambda s, t: 16 * kl(s.softmax(1), t.softmax(1)),
    "the cross-entropy of the softened outputs": lambda s, t: 16 * F.cross_entropy(s / 4, (t / 4).softmax(1)),
    "softened on the teacher's side alone": lambda s, t: 16 * kl(4 * s, t),
    "softened on the student's side alone": lambda s, t: 16 * kl(s, 4 * t),
    "without the square of the temperature, and divided": lambda s, t: kl(s, t, reduction="mean"),
}.items())
def test_a_mistake_in_ones_own_loss_is_named(words, loss):
    (finding,) = diagnose(*with_loss(loss)[:2], loss=loss)
    assert finding.name == "formula" and words in finding.words
    assert diagnose(healthy(), (X, Y), loss=lambda s, t: 16 * kl(s, t)) == []


def test_a_checkpoint_is_a_file_that_can_be_read(tmp_path):
    kd, batch, words = FAULTS["checkpoint not loaded"]()
    torch.save(words["checkpoint"], path := tmp_path / "teacher.pth")
    assert [finding.name for finding in diagnose(kd, batch, checkpoint=path)] == ["checkpoint not loaded"]
    path.write_text("no weights")
    with pytest.raises(UserError, match="teacher.pth: not a checkpoint that can be read"):
        diagnose(kd, batch, checkpoint=path)


def test_the_first_step_warns_and_refuses_what_cannot_learn(caplog):
    kd, batch, _ = FAULTS["softmax in the teacher"]()
    for _ in range(2):  # reported only once
        kd(*batch)
    assert [record.message.split(":")[0] for record in caplog.records] == ["softmax in the teacher"]
    caplog.clear()
    kd, batch, _ = FAULTS["softmax in the teacher, stored"]()
    kd(**batch)
    assert [record.message.split(":")[0] for record in caplog.records] == ["softmax in the teacher"]
    for name in ("student frozen", "loss detached", "shape of logits", "shape of logits, unweighted"):
        kd, batch, _ = FAULTS[name]()
        with pytest.raises(UserError, match=f"^{name.split(',')[0]}: "):
            kd(*batch)


@pytest.mark.parametrize("name", ["labels from 1", "label out of range", "number of classes", "type of the images",
                                  "type of the weights"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_step_that_fails_tells_its_cause_at_any_time(name, checked):
    kd, batch, _ = FAULTS[name]()
    kd.checked = checked
    if not checked and name == "number of classes":
        with pytest.raises(RuntimeError, match="must match"):  # the outputs that would tell are not kept
            kd(*batch)
        return
    with pytest.raises(UserError, match=f"^{name}: ") as told:
        kd(*batch)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("steps", [0, 1])
def test_an_error_keeps_its_kind_where_a_teacher_of_another_precision_is_not_its_cause(steps):
    """Networks of transformers convert their images, so that a teacher in half precision is in order."""
    def fail(student, args):
        raise MemoryError("full")

    kd = healthy(teacher=Teacher().double())
    kd.teacher.register_forward_pre_hook(lambda teacher, args: (args[0].double(),))
    for _ in range(steps):
        kd(X, Y)
    kd.student.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="^full$"):
        kd(X, Y)


def test_samples_are_numbered_below_the_size_of_the_training_set():
    with pytest.raises(UserError, match="^index out of range: samples are numbered from 1 to 40 with 40 in the"):
        healthy("CRD", targets=Y)(X, Y, index=torch.arange(1, 41))


def test_a_label_that_the_cross_entropy_ignores_is_refused_where_the_class_is_read():
    labels = torch.where(Y == 3, -100, Y)
    assert "label out of range" not in {finding.name for finding in diagnose(healthy(), (X, labels))}
    expected = F.cross_entropy(healthy().student(X), Y, reduction="none")[Y != 3].mean()
    torch.testing.assert_close(healthy(KD_WEIGHT=0.0, CE_WEIGHT=1.0)(X, labels).loss, expected)
    with pytest.raises(UserError, match="^label out of range: labels run from -100 to 7 with 8 classes"):
        healthy("DKD")(X, labels)


def test_networks_on_a_device_without_addresses_share_nothing():
    assert list(shared_storage(Student().to("meta"), Student().to("meta"))) == []
    one = Student()
    assert len(list(shared_storage(one, one))) == len(list(one.parameters()))
