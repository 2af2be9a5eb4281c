"""Rouge-L and exact match of answers, in percent."""

import functools
import logging
import re
import string
from collections.abc import Sequence
from typing import Any

from mdistiller.libraries import import_extra

log = logging.getLogger("mdistiller")
_WORD = re.compile("[a-z0-9]")  # all that the library compares
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def scorer() -> Any:
    """The library's scorer of Rouge-L. Raises UserError if it is not installed."""
    module = import_extra("rouge_score.rouge_scorer", "Rouge-L", "llm")
    return module.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The largest Rouge-L of an answer over its references, in percent.

    It is the F-measure of the library rouge-score with the Porter stemmer. Raises UserError if that is not installed.
    The library compares only words of the letters a to z and digits. That it is 0 for other scripts is logged once.
    """
    if not any(_WORD.search(reference.lower()) for reference in references):
        _say_once()
    return 100 * max(scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


@functools.cache
def _say_once():
    log.warning("Rouge-L compares only words of the letters a to z and digits, and is 0 where a reference has none, as "
                "in other scripts; with GENERATION.EXAMPLES 0 the accuracy of tokens is measured and chooses the epoch")


def exact(answer: str, references: Sequence[str]) -> float:
    """100 if the answer equals one of the references, both `normalized`, else 0."""
    return 100.0 * (normalized(answer) in set(map(normalized, references)))


def normalized(text: str) -> str:
    """The text in lower case, without ASCII punctuation, its words separated by one space.

    Answers are compared so in the evaluation of Super-NaturalInstructions (Wang et al., arXiv:2204.07705), which the
    public code for distilling language models has copied. The evaluation of SQuAD also leaves out articles.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())
