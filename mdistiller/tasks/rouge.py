"""Rouge-L and exact match of answers, in percent."""

import functools
from collections.abc import Sequence

from mdistiller.libraries import import_extra


@functools.cache
def _scorer():
    module = import_extra("rouge_score.rouge_scorer", "Rouge-L", "llm")
    return module.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The largest Rouge-L of an answer over its references, in percent.

    It is the F-measure of the library rouge-score with the Porter stemmer. Raises UserError if that is not installed.
    """
    return 100 * max(_scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


def exact(answer: str, references: Sequence[str]) -> float:
    """100 if the answer equals one of the references, without the white space around them, else 0."""
    return 100.0 * (answer.strip() in {reference.strip() for reference in references})
