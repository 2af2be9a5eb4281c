"""The spread of EA's weights in language models over tokens and sequences, for several temperatures T'."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mdistiller.analysis import networks
from mdistiller.distillers.ea import entropy, weigh_entropies

TEMPERATURES = (1.0, 2.0, 3.0)
LEVELS = ("token", "sequence", "mean_weight")
STUDENTS = ("own", "uniform")  # the student of the run, and one that gives every token the same probability
QUANTILES = (5, 25, 50, 75, 95)


@torch.inference_mode()
def token_weights(methods: Mapping[str, Sequence], options) -> dict[str, list[dict] | dict[str, np.ndarray]]:
    """Distribution of w (EA-KD, Eq. 11; in nats) over the supervised tokens and over the sequences of the test set.

    Returns a table `spread` (mean, standard deviation, the latter in percent of the mean, quantiles) and arrays
    `weights`, both for the first seed of each method. Raises UserError for runs of another task.
    """
    rows, arrays = [], {}
    for name, (run, *_) in methods.items():
        _, data, distiller = networks.open_with_teacher(run.path, "latest", options.opts, task="language")
        entropies, group = _entropies(distiller, data.eval_batches("test"))
        bound = math.log(distiller.task.vocabulary["TEACHER"])
        for temperature, (own, teacher) in entropies.items():
            for student, level in ((student, level) for student in STUDENTS for level in LEVELS):
                seen = own if student == "own" else torch.full_like(own, bound)
                weight = weigh_entropies(seen, teacher, "ea", bound, group, level)
                weight = weight if level == "token" else _one_a_group(weight, group)
                rows.append(_row(name, student, temperature, level, weight))
                arrays[f"{name}, {student}|{temperature:g}|{level}"] = weight.numpy().astype(np.float32)
    return {"spread": rows, "weights": arrays}


def _entropies(distiller, batches):
    """({T': entropies (2, n) of student and teacher at supervised tokens}, sequence number of each token (n,))."""
    found, groups, sequences = {temperature: [] for temperature in TEMPERATURES}, [], 0
    for batch in batches:
        logits = [distiller.task.logits(network, batch).float() for network in (distiller.student, distiller.teacher)]
        for temperature, parts in found.items():
            parts.append(torch.stack([entropy(one, temperature) for one in logits]).cpu())
        groups.append(batch["group"].cpu() + sequences)
        sequences += len(batch["ids"])
    return {temperature: torch.cat(parts, dim=1) for temperature, parts in found.items()}, torch.cat(groups)


def _one_a_group(weight, group):
    """The weight of each group, (number of groups,), from weights (n,) that are equal within a group."""
    numbers = group.unique()
    first = torch.tensor([int((group == number).nonzero()[0, 0]) for number in numbers])
    return weight[first]


def _row(method, student, temperature, level, weight):
    mean, deviation = float(weight.mean()), float(weight.std())
    quantiles = np.percentile(weight.numpy(), QUANTILES)
    return {"method": method, "student": student, "temperature": temperature, "level": level, "number": len(weight),
            "mean": mean, "deviation": deviation, "percent": 100 * deviation / mean,
            **{f"q{part}": float(value) for part, value in zip(QUANTILES, quantiles, strict=True)}}
