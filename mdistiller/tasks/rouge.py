"""Rouge-L and exact match of answers, in percent."""

import functools
import string
from collections.abc import Sequence
from typing import Any

from mdistiller.libraries import import_extra

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def scorer() -> Any:
    """The library's scorer of Rouge-L. Raises UserError if it is not installed."""
    module = import_extra("rouge_score.rouge_scorer", "Rouge-L", "llm")
    return module.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The largest Rouge-L of an answer over its references, in percent.

    It is the F-measure of the library rouge-score with the Porter stemmer. Raises UserError if that is not installed.
    """
    return 100 * max(scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


def exact(answer: str, references: Sequence[str]) -> float:
    """100 if the answer equals one of the references, both `normalized`, else 0."""
    return 100.0 * (normalized(answer) in set(map(normalized, references)))


def normalized(text: str) -> str:
    """The text in lower case, without ASCII punctuation, its words separated by one space.

    As the evaluation of Super-NaturalInstructions (Wang et al., arXiv:2204.07705) compares answers, from which the
    public code of language models has it; SQuAD's also leaves out articles.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())
