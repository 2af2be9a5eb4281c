"""Builds batches for causal language models from tokenized prompts and answers."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IGNORED = -100  # a label without a loss


class Sample(NamedTuple):
    """One tokenized example: the prompt, the answer (with the end-of-text token, unless it was cut off), and the texts
    with which an answer is compared."""

    prompt: array
    answer: array
    references: tuple[str, ...] = ()


def prompt_limit(max_prompt: int, max_length: int) -> int:
    """The largest number of tokens of a prompt: at least one of the `max_length` is left to the answer."""
    return min(max_prompt, max_length - 1)


def cut(prompt: Sequence[int], answer: Sequence[int], end: int, max_prompt: int, max_length: int) -> Sample:
    """Prompt and answer within the limits: the first tokens of the prompt (see `prompt_limit`), the answer and the
    end-of-text token, and of all these the first `max_length` (which may cut off the end-of-text token)."""
    prompt = prompt[: prompt_limit(max_prompt, max_length)]
    return Sample(*(array("i", tokens) for tokens in (prompt, [*answer, end][: max_length - len(prompt)])))


def collate(samples: Sequence[Sample], pad: int, length: int | None = None) -> dict[str, np.ndarray]:
    """Arrays (B, L) of samples, padded on the right: `ids` (all tokens but the last), `mask` (1 at tokens), `places`
    (0, 1, 2, ...; 0 at padding), `labels` (the next token where it belongs to the answer, else IGNORED).

    L is the length of the longest sample, or `length` if given. Further arrays are about the n supervised positions:
    `positions` (n,) in the flattened B * L, `group` (n,), the row of each, and `target` (n,), the next token. `around`
    (m,) are the positions of the other tokens.
    """
    rows = [[*sample.prompt, *sample.answer] for sample in samples]
    length = length or max(max(len(row) for row in rows) - 1, 1)
    shape = len(rows), length
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    places, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        size, first = len(row) - 1, len(sample.prompt) - 1
        ids[number, :size], mask[number, :size] = row[:-1], 1
        places[number, :size] = np.arange(size)
        labels[number, first:size] = row[first + 1 :]
    supervised = labels != IGNORED
    group, column = supervised.nonzero()
    return {
        "ids": ids, "mask": mask, "places": places, "labels": labels,
        "positions": group * length + column, "group": group, "target": labels[supervised],
        "around": np.flatnonzero((mask > 0) & ~supervised),
    }
