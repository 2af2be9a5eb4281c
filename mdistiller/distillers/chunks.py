"""Losses of samples with very many classes (a vocabulary), computed for a few samples at a time to save memory."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mdistiller.distillers.reduce import weighted_mean
from mdistiller.tasks import TaskOutput


def rows_stand_alone(distiller, student) -> bool:
    """Whether the logits are to be made in chunks and the method allows it: each loss reads one sample's logits only.
    """
    head = getattr(student, "head", None)
    return (
        head is not None and head.chunk > 0 and distiller.inputs == "logits" and not distiller.batch_terms
        and tuple(distiller.views) == ("image",) and distiller.sample_axis == "sample"
    )


def losses_in_chunks(distiller, student: TaskOutput, teacher: TaskOutput | None, epoch: int, batch: dict) -> dict:
    """The losses of a step by name, equal to those computed from all logits at once; outputs hold rows and a head.

    Each chunk is a function from rows to losses and entropies, checkpointed and so computed again in the backward
    pass. No logits outlive their chunk, and the entropies for the weights need no separate pass.
    """
    target, number = distiller.task.target(batch, student), len(student.logits)
    parts = []
    for low in range(0, max(number, 1), student.head.chunk):
        piece = slice(low, min(low + student.head.chunk, number))
        part = partial(_part, distiller, student, teacher, piece, target, epoch, batch)
        rows = student.logits[piece], None if teacher is None else teacher.logits[piece]
        parts.append(checkpoint(part, *rows, use_reentrant=False))
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    of = {kind: {key[1]: value for key, value in joined.items() if key[0] == kind} for kind in
          ("supervised", "term", "entropy", "progress")}
    distiller.progress, distiller.monitor = of["progress"], {}
    losses = {name: value.sum() for name, value in of["supervised"].items()}
    weight = _weight(distiller, student, teacher, of["entropy"])
    weight = weight if student.importance is None else weight * student.importance
    return losses | {name: weighted_mean(loss, weight, name, distiller.method) for name, loss in of["term"].items()}


def _part(distiller, student, teacher, piece, target, epoch, batch, rows, rows_teacher):
    """{(kind, name): (k,)} for a chunk of k rows; a supervised loss has one value, its part of the mean."""
    part = _slice(student, piece, student.head(rows))
    outputs, target = distiller.full_precision(part), target[piece]
    supervised = distiller.task.supervised([outputs], target, distiller.label_smoothing)
    share = (piece.stop - piece.start) / max(len(student.logits), 1)
    found = {("supervised", name): (share * distiller.supervised_weight(name) * loss)[None]
             for name, loss in supervised.items()}
    found |= {("progress", name): values for name, values in
              distiller.task.progress(outputs.logits.detach(), target).items()}
    if teacher is None:
        return found
    with torch.no_grad():
        taught = distiller.full_precision(_slice(teacher, piece, teacher.head(rows_teacher)))
    if distiller.weighted:
        for role, output in (("student", outputs), ("teacher", taught)):
            found["entropy", role] = distiller.weighting.entropy(output.logits.detach())
    outputs, taught = distiller.standardized(outputs), distiller.standardized(taught)
    terms = distiller.sample_losses(outputs, taught, **batch | {"target": target, "epoch": epoch})
    return found | {("term", name): loss for name, loss in terms.items()}


def _slice(output: TaskOutput, piece: slice, logits: Tensor) -> TaskOutput:
    per_sample = {name: getattr(output, name) for name in ("group", "importance")}
    return TaskOutput(logits, **{name: value if value is None else value[piece] for name, value in per_sample.items()})


def _weight(distiller, student, teacher, entropies):
    if teacher is None or not distiller.weighted:
        return torch.ones(len(student.logits), device=student.logits.device)
    around = None if student.surroundings is None else entropies_around(distiller, student, teacher)
    group = student.group if distiller.weighting.by_group else None
    return distiller.weigh(entropies["student"], entropies["teacher"], student.head.num_classes, group, around)


@torch.no_grad()
def entropies_around(distiller, student: TaskOutput, teacher: TaskOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies (m,) of the student and of the teacher, and groups (m,), of the `surroundings` of the samples."""
    found = []
    for rows, _, head in (student.surroundings, teacher.surroundings):
        pieces = rows.split(head.chunk or max(len(rows), 1))
        found.append(torch.cat([distiller.weighting.entropy(head(piece)) for piece in pieces]))
    return *found, student.surroundings[1]
