"""Checks of the logits of student and teacher, and of the labels beside them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mdistiller.functional import entropy
from mdistiller.library.doctor.finding import Case, Finding, accuracy, finite

ENOUGH = 32  # number of samples from which on an accuracy is meaningful
NEAR_CHANCE = 2.0  # times the accuracy of guessing
CONFUSED = 0.8  # accuracy after renaming classes from which on their order is reported as wrong
EA_TEMPERATURE = 3.0
LITTLE_WEIGHT = 1e-3  # mean weight of EA, in nats, below which a loss is negligible
IGNORED = -100  # label of a sample that the cross-entropy leaves out
HALF = 65504  # the largest number of float16


def check_outputs(case: Case) -> Iterator[Finding]:
    """Faults of the logits (n, C) of both networks, and of the labels (n,)."""
    student, teacher = case.logits_student, case.logits_teacher
    for role, logits in (("student", student), ("teacher", teacher)):
        if logits is not None:
            yield from _logits(role, logits)
    if student is not None and teacher is not None and student.shape[-1] != teacher.shape[-1]:
        yield Finding(
            "number of classes",
            f"the student tells {student.shape[-1]} classes and the teacher "
            f"{teacher.shape[-1]}: give both a head of the same classes",
        )
    elif student is not None and teacher is not None and torch.equal(student, teacher):
        yield Finding(
            "equal outputs",
            "student and teacher give the same logits: they hold the same weights, and there is nothing to distil",
        )
    yield from check_labels(case)
    if teacher is not None and case.labelled and finite(teacher):
        yield from _teacher(teacher, case.target)


def _logits(role, logits):
    if logits.dim() != 2:
        yield Finding(
            "shape of logits",
            f"the {role}'s logits have shape {tuple(logits.shape)}; expected (n, classes), one row for each input",
        )
        return
    if logits.shape[1] == 1:
        yield Finding("one logit", f"the {role} gives one logit a sample, whose softmax is 1; give it two classes")
        return
    if not finite(logits):
        half = logits.dtype == torch.float16
        advice = f"float16 ends at {HALF}; use bfloat16 or float32" if half else "look at its weights and its inputs"
        yield Finding(
            "overflow" if half else "logits not finite", f"the {role}'s logits hold infinity or NaN: {advice}"
        )
        return
    wide = logits.float()
    tolerance = 1e-3 if logits.dtype != torch.float32 else 1e-4
    ones = torch.ones(len(wide), device=wide.device)
    if bool((wide >= 0).all()) and torch.allclose(wide.sum(dim=1), ones, atol=tolerance):
        yield Finding(
            f"softmax in the {role}",
            f"the {role} returns probabilities, which a loss would soften again; let it return logits",
        )
    elif bool((wide <= 0).all()) and torch.allclose(wide.logsumexp(dim=1), 0 * ones, atol=tolerance):
        yield Finding(f"log-softmax in the {role}", f"the {role} returns log-probabilities; let it return logits")
    elif bool((wide == wide[:1]).all()) and len(wide) > 1:
        yield Finding(f"constant {role}", f"the {role} gives the same logits for every sample of the batch")


def check_labels(case: Case) -> Iterator[Finding]:
    """Faults of the labels: class numbers (n,), or where no method reads them, class probabilities (n, C)."""
    target, logits = case.target, case.logits_teacher if case.logits_teacher is not None else case.logits_student
    classes = case.kd.distiller.data_info.num_classes if logits is None else logits.shape[-1]
    if target is None or not classes:
        return
    reads = "target" in case.kd.reads
    soft = target.is_floating_point() and not reads and target.dim() == 2 and target.shape[1] == classes
    if not soft and (target.is_floating_point() or target.dim() != 1):
        yield Finding(
            "form of the labels",
            f"labels have shape {tuple(target.shape)} and type {target.dtype}; expected "
            "(n,) class numbers of type torch.int64 (argmax of one-hot rows)",
        )
        return
    if logits is not None and len(target) != len(logits):
        yield Finding("number of labels", f"there are {len(target)} labels for {len(logits)} samples")
        return
    target = target if reads or soft else target[target != IGNORED]
    if soft:
        return
    if not len(target):
        yield Finding("no labels", f"no sample of the batch has a label: all are {IGNORED}")
        return
    low, high = int(target.min()), int(target.max())
    if low >= 1 and high == classes:
        yield Finding("labels from 1", f"labels run to {high} with {classes} classes: they count from 1; subtract 1")
    elif low < 0 or high >= classes:
        yield Finding(
            "label out of range", f"labels run from {low} to {high} with {classes} classes; expected 0 to {classes - 1}"
        )
    elif len(target) >= ENOUGH and low == high:
        yield Finding("one class", f"all {len(target)} samples of the batch are of class {low}: shuffle the loader")


def check_index(kd, extra: dict[str, Any]) -> Iterator[Finding]:
    """A fault if the numbers of the samples are not below that of the training set."""
    index, number = extra.get("index"), kd.distiller.data_info.num_train
    if isinstance(index, Tensor) and len(index) and number:
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= number:
            yield Finding("index out of range", f"samples are numbered from {low} to {high} with {number} in the "
                                                f"training set; expected 0 to {number - 1}")


def _teacher(logits, target):
    classes, right = logits.shape[1], accuracy(logits, target)
    if len(target) < ENOUGH or right >= NEAR_CHANCE / classes:
        yield from ()
    elif (shift := _shift(logits, target)) is not None:
        yield Finding(
            "labels off by one",
            f"the teacher is right on {100 * right:.0f} % of the batch, and on "
            f"{100 * _shifted(logits, target, shift):.0f} % of it with labels shifted by "
            f"{shift:+d}",
        )
    elif (renamed := _renamed(logits, target)) >= CONFUSED:
        yield Finding(
            "order of classes",
            f"the teacher is right on {100 * right:.0f} % of the batch, and would be on "
            f"{100 * renamed:.0f} % with its classes in another order: compare the lists "
            "of class names",
        )
    else:
        yield Finding(
            "teacher at chance",
            f"the teacher is right on {100 * right:.1f} % of {len(target)} samples "
            f"(guessing: {100 / classes:.1f} %): is its checkpoint loaded, of these "
            "classes, and of this normalisation?",
        )
    if float(entropy(logits, EA_TEMPERATURE).mean()) < LITTLE_WEIGHT:
        yield Finding(
            "teacher without doubt",
            "the teacher's softmax at temperature 3 is one-hot on the whole batch: EA "
            "weighs each sample by about 0, and there is nothing besides the labels",
        )


def _shift(logits, target):
    for shift in (1, -1):
        if logits.shape[1] > 2 and _shifted(logits, target, shift) >= CONFUSED:
            return shift
    return None


def _shifted(logits, target, shift):
    return accuracy(logits, (target + shift) % logits.shape[1])


def _renamed(logits, target):
    """Accuracy when each predicted class is renamed to the label that it goes with most, each label used once.

    With few samples, chance alone makes it high: it is therefore 0 for fewer than two samples a class on average.
    """
    classes = logits.shape[1]
    if len(target) < 2 * classes:
        return 0.0
    confusion = torch.zeros(classes, classes)
    confusion.index_put_((target.cpu(), logits.argmax(dim=1).cpu()), torch.ones(len(target)), accumulate=True)
    hits = 0.0
    for _ in range(classes):
        best = confusion.argmax()
        row, column = int(best // classes), int(best % classes)
        hits += float(confusion[row, column])
        confusion[row], confusion[:, column] = -1, -1
        if float(confusion.max()) <= 0:
            break
    return hits / len(target)
