"""Answers of language models side by side: prompt, reference, and the answers of teacher and student."""

from collections.abc import Sequence
from html import escape
from itertools import chain

from mdistiller.errors import UserError
from mdistiller.runs.reading import parse_json, read_text
from mdistiller.runs.records import RunRecord

EXAMPLES = 4  # number of examples shown of each run
LONGEST = 600  # longest text in characters that is shown completely
WHO = {"teacher": "teacher", "start": "student before training", "best": "student, best epoch",
       "latest": "student, last epoch"}  # folders below answers/, in the order of the page


def answers_section(runs: Sequence[RunRecord], link) -> str:
    """The first answers of every run that has answers (tools/answers.py) as HTML; empty if no run has any.

    `link` maps a run to an HTML link. Raises UserError for a damaged file of answers.
    """
    parts = list(chain.from_iterable(_run(run, link) for run in runs))
    return "\n".join(['<h2 id="answers">Answers</h2>', *parts]) if parts else ""


def _run(run, link):
    if run.kept is not None:  # it has no folder
        return
    files = sorted({path.name for who in WHO for path in (run.path / "answers" / who).glob("*_seed*.jsonl")})
    for name in files[:1]:  # one decoding seed of one set is sufficient
        answers = {who: _first_lines(run.path / "answers" / who / name) for who in WHO}
        answers = {who: lines for who, lines in answers.items() if lines}
        title = f"{escape(run.method)}, {escape(str(run.config['DISTILLER.STUDENT']))}: {escape(name[:-6])}"
        yield f"<h3>{title}, {link(run)}</h3>"
        for index in sorted(set.intersection(*map(set, answers.values()))):
            lines = [lines[index] for lines in answers.values()]
            rows = [("prompt", lines[0]["prompt"]), ("reference", (lines[0]["references"] or [""])[0])]
            rows += [(f"{WHO[who]} (Rouge-L {line['rouge_l']:.0f})", line["answer"])
                     for who, line in zip(answers, lines, strict=True)]
            cells = "".join(f"<tr><th>{head}</th><td>{_shown(text)}</td></tr>" for head, text in rows)
            yield f'<div><table class="metadata">{cells}</table></div>'


def _first_lines(path):
    """{index: line} of the first lines of a file of answers. Raises UserError for an invalid line."""
    found = {}
    for number, text in enumerate(read_text(path).split("\n")[:EXAMPLES], start=1):
        if not text:
            break
        try:
            line = parse_json(text, f"{path}, line {number}")
            fits = all(isinstance(line[key], str) for key in ("prompt", "answer"))
            fits = fits and isinstance(line["references"], list) and isinstance(line["rouge_l"], int | float)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path}, line {number}: expected prompt, answer, references and rouge_l of an answer")
        found[line.get("index", number)] = line
    return found


def _shown(text):
    text = str(text)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " ...").replace("\n", "<br>")
