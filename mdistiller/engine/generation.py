"""The final evaluation of language models: sampled answers to instruction sets, stored as JSON Lines, and their scores.

In a run folder, answers/<checkpoint>/<name of the set>_<n-gram rule>_seed<seed>.jsonl holds one line per example:
index, prompt, answer, references, rouge_l, exact, tokens, source. An interrupted evaluation continues after its last
complete line; an answer depends only on (source, seed, example), where the source is a hash of the weights and of the
settings of generation. answers/<checkpoint>/scores.json holds the mean scores.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch

from mdistiller import files
from mdistiller.config.key import Key
from mdistiller.config.language import GENERATION
from mdistiller.data.instructions import Example, in_front, read_examples, within_limit
from mdistiller.engine.checkpoints import state_sha256
from mdistiller.engine.device import choose_device
from mdistiller.engine.log import progress
from mdistiller.engine.reopen import open_run, read_config
from mdistiller.engine.setup import build_run
from mdistiller.errors import UserError, writing
from mdistiller.json_text import ANSWERS, SCORES, read_answer
from mdistiller.precision import autocast
from mdistiller.tasks.language import decoding_of
from mdistiller.tasks.rouge import exact, rouge_l

log = logging.getLogger("mdistiller")
COPY = "copy"  # the answer is a copy of the input, or of the instruction when there is no input
TEACHER, START = "teacher", "start"
NUMBERS = ("rouge_l", "exact", "tokens")  # of an answer


def evaluate_answers(run_folder: str | Path, sets: dict[str, Path], seeds: Sequence[int], ngram: int,
                     checkpoint: str = "best", limit: int | None = None, opts: Sequence = ()) -> dict:
    """Sample and score a student's answers to sets of instructions; returns the content of scores.json (percent).

    `sets` maps names to JSON Lines files; prompts of more than LM.MAX_PROMPT tokens are left out or cut, as in training
    (LM.LONG_PROMPTS), and their number is logged. `ngram` is the length of n-grams that an answer may not repeat (0: no
    rule), `limit` the number of examples used of each set (None: all). `checkpoint` is one of the run, or "start" (the
    student before training), "teacher" (the run's teacher) or "copy" (scores the copied input; no network). Raises
    UserError when the run is not one of language models, when it has no "teacher", and for a wrong name or number.
    """
    _check(sets, seeds, ngram, limit)
    folder = Path(run_folder)
    run = _run_of(folder, checkpoint, opts)
    place = folder / ANSWERS / checkpoint
    source = COPY if checkpoint == COPY else _source(run, _network(run, checkpoint))
    for name, path in sets.items():
        chosen = within_limit(read_examples(path)[:limit], run.task.info.tokenizer, run.cfg.LM, name, answered=False)
        examples, prompts = zip(*chosen, strict=True)
        for seed in seeds if checkpoint != COPY else seeds[:1]:
            answer = _copied if checkpoint == COPY else _answering(run, seed, ngram, checkpoint, prompts)
            target = place / f"{name}_{'ngram' + str(ngram) if ngram else 'free'}_seed{seed}.jsonl"
            _complete(target, examples, answer, run.cfg.GENERATION.BATCH_SIZE, source)
    return summarize(place)


def _check(sets, seeds, ngram, limit):
    for name in sets:
        if not name or Path(name).name != name:
            raise UserError(f"--sets: expected a name without slashes, or FILE alone; found {name}")
    given = [("--ngram", ngram, GENERATION["NO_REPEAT_NGRAM"])]
    given += [("--seeds", seed, GENERATION["SEED"]) for seed in seeds]
    given += [] if limit is None else [("--limit", limit, Key(1, least=1))]
    for option, value, key in given:
        try:
            key.read(value)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from None


def _run_of(folder, checkpoint, opts):
    if checkpoint in (START, TEACHER):
        cfg = read_config(folder, opts)
        run = build_run(cfg, choose_device(cfg.DEVICE))
        if checkpoint == TEACHER and run.distiller.teacher is None:
            raise UserError(f"{folder}: {cfg.DISTILLER.TYPE} has no teacher; choose a run whose method has one")
    else:
        run = open_run(folder, "best" if checkpoint == COPY else checkpoint, opts)
    if run.task.unit != "tokens":
        raise UserError(f"{folder}: expected a run of language models; its task generates no answers")
    return run


def _network(run, checkpoint):
    return (run.distiller.teacher if checkpoint == TEACHER else run.distiller.deployed()).eval()


def _source(run, network):
    """A hash of what the answers depend on apart from seed, example and n-gram rule: weights and settings."""
    cfg = run.cfg
    settings = decoding_of(cfg)._replace(no_repeat_ngram=0), cfg.LM.MAX_PROMPT, cfg.LM.MAX_LENGTH, cfg.SOLVER.AMP
    first = in_front(run.task.info.tokenizer, cfg.LM)
    content = json.dumps([state_sha256(network.state_dict()), settings, *([first] if first else [])])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _answering(run, seed, ngram, checkpoint, prompts):
    """A function (examples, their numbers) -> list of (answer, its length in tokens); `prompts` are those of all."""
    task, cfg, tokenizer = run.task, run.cfg, run.task.info.tokenizer
    network = _network(run, checkpoint)
    decoding = decoding_of(cfg)._replace(no_repeat_ngram=ngram)

    def answer(examples, numbers):
        with torch.inference_mode(), autocast(run.device, cfg.SOLVER.AMP):
            texts = task.answer(network, [prompts[one] for one in numbers], numbers, seed, run.device, decoding)
        return [(text, len(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]

    return answer


def _copied(examples, numbers):
    return [(example.copied.strip(), len(example.copied.split())) for example in examples]


def _complete(path: Path, examples: Sequence[Example], answer, batch_size: int, source: str) -> None:
    """Append the missing answers to a file, batch by batch; an incomplete last line is replaced.

    Raises UserError if the file has answers from another source or to other prompts.
    """
    with writing(path):
        lock = files.lock(path.with_suffix(".lock"), inherited=False)
    if lock is None:
        raise UserError(f"{path}: another process writes these answers; wait for it, then give the same command")
    with lock, writing(path):
        done = _whole_lines(path)
        for number, (line, example) in enumerate(zip(done, examples, strict=False)):
            found = json.loads(line)
            if found.get("source", source) != source:
                raise UserError(f"{path}: these answers were generated with other weights or other settings "
                                "(GENERATION, LM.MAX_PROMPT, LM.MAX_LENGTH, LM.BOS, SOLVER.AMP); move the file away, "
                                "or delete it")
            if found.get("prompt") != example.prompt:
                raise UserError(f"{path}: answer {number} is to another prompt than the set now has; give the set "
                                "another name (NAME=FILE), or delete the file")
        files.write_text(path, "".join(line + "\n" for line in done))
        if len(done) < len(examples):
            log.info("%s: %d of %d answers are stored", path, len(done), len(examples))
        with progress(len(examples), path.stem, initial=len(done), unit=" answer") as bar:
            for low in range(len(done), len(examples), batch_size):
                part = examples[low : low + batch_size]
                numbers = list(range(low, low + len(part)))
                lines = [_line(*item, source) for item in zip(numbers, part, answer(part, numbers), strict=True)]
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
                    file.flush()
                bar.update(len(part))


def _whole_lines(path):
    """The lines up to the first that is incomplete or damaged."""
    kept: list[str] = []
    for line in files.read_plain(path, errors="replace").split("\n") if path.exists() else ():
        content = read_answer(line, NUMBERS)
        if content is None or content["index"] != len(kept):
            break
        kept.append(line)
    return kept


def _line(index, example, answered, source):
    text, tokens = answered
    content = {
        "index": index, "prompt": example.prompt, "answer": text, "references": list(example.references),
        "rouge_l": rouge_l(text, example.references), "exact": exact(text, example.references), "tokens": tokens,
        "source": source,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def read_answers(path: Path) -> Iterator[dict]:
    """The lines of a file of answers."""
    yield from map(json.loads, _whole_lines(path))


def summarize(place: Path) -> dict:
    """Average the answer files of a folder and write scores.json; returns its content.

    The content is {set: {rule: {"rouge_l", "rouge_l_std" (over decoding seeds), "exact", "tokens", "seeds",
    "examples"}}}; scores are in percent. They are those of the seeds with the most answers: seeds of which answers are
    missing are left out, and logged.
    """
    found: dict = {}
    for path in sorted(place.glob("*_seed*.jsonl")):
        name, rule, seed = (["", *path.stem.rsplit("_", 2)])[-3:]
        lines = list(read_answers(path))
        if lines and seed.removeprefix("seed").isdecimal():
            means = {key: fmean(line[key] for line in lines) for key in NUMBERS}
            found.setdefault(name, {}).setdefault(rule, {})[int(seed.removeprefix("seed"))] = means, len(lines)
    scores = {name: {rule: _over_seeds(seeds, f"{place}: {name}, {rule}") for rule, seeds in rules.items()}
              for name, rules in found.items()}
    files.write_text(place / SCORES, json.dumps(scores, indent=1) + "\n")
    return scores


def _over_seeds(seeds, place):
    most = max(number for _, number in seeds.values())
    if fewer := {seed: number for seed, (_, number) in seeds.items() if number < most}:
        words = ", ".join(f"seed {seed} with {number}" for seed, number in fewer.items())
        log.warning("%s: left out, as others have %d answers: %s", place, most, words)
    whole = {seed: means for seed, (means, number) in seeds.items() if number == most}
    means = {key: fmean(one[key] for one in whole.values()) for key in NUMBERS}
    each = [one["rouge_l"] for one in whole.values()]
    return means | {
        "rouge_l_std": stdev(each) if len(each) > 1 else None, "seeds": sorted(whole), "examples": most,
    }
