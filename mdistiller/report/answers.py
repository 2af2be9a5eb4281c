"""Answers of language models side by side: prompt, reference, and the answers of teacher and student."""

from collections.abc import Iterator, Sequence

from mdistiller.errors import UserError
from mdistiller.files import read_text
from mdistiller.json_text import ANSWERS, read_answer
from mdistiller.runs.records import RunRecord

EXAMPLES = 4  # number of examples shown of each run
LONGEST = 600  # longest text in characters that is shown completely
WHO = {"teacher": "teacher", "start": "student before training", "best": "student, best epoch",
       "latest": "student, last epoch"}  # folders below answers/, in the order of the page


def answers_of(runs: Sequence[RunRecord]) -> Iterator[tuple[RunRecord, str, list[list[tuple[str, str]]]]]:
    """(run, name of a set, examples) of every run that has answers (tools/answers.py).

    An example is a list of (who, text). Raises UserError for a damaged file of answers.
    """
    for run in runs:
        if run.kept is not None:  # an archived run has no folder
            continue
        names = {path.name for who in WHO for path in (run.path / ANSWERS / who).glob("*_seed*.jsonl")}
        if names:
            name = min(names)  # one decoding seed of one set is sufficient
            answers = {who: _first_lines(run.path / ANSWERS / who / name) for who in WHO}
            found = {who: lines for who, lines in answers.items() if lines}
            yield run, name.removesuffix(".jsonl"), list(_examples(found))


def _examples(answers):
    for index in sorted(set.intersection(*map(set, answers.values()))) if answers else ():
        lines = [lines[index] for lines in answers.values()]
        yield [("prompt", _shown(lines[0]["prompt"])), ("reference", _shown((lines[0]["references"] or [""])[0])),
               *((f"{WHO[who]} (Rouge-L {line['rouge_l']:.0f})", _shown(line["answer"]))
                 for who, line in zip(answers, lines, strict=True))]


def _first_lines(path):
    """{index: line} of the first lines of a file of answers. Raises UserError for an invalid line."""
    found = {}
    for number, text in enumerate(read_text(path).split("\n")[:EXAMPLES], start=1):
        if not text:
            break
        line = read_answer(text)
        if line is None:
            raise UserError(f"{path}, line {number}: expected index, prompt, answer, references and rouge_l")
        found[line["index"]] = line
    return found


def _shown(text):
    text = str(text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
