"""Instruction sets: prompts and answers for language models, from JSON Lines of instruction, input and output."""

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from mdistiller.config.words import shown
from mdistiller.data.base import order_seed
from mdistiller.data.build import DATASETS
from mdistiller.data.collate import collate, cut, prompt_limit
from mdistiller.data.hashing import permutation
from mdistiller.data.images import upload
from mdistiller.data.info import DataInfo
from mdistiller.data.splits import train_val_positions
from mdistiller.data.tokenizers import beginning, load_tokenizer, tokens_of
from mdistiller.errors import UserError
from mdistiller.files import read_plain

log = logging.getLogger("mdistiller")
SURROGATE = re.compile("[\ud800-\udfff]")
# The Alpaca template. Existing answers and models were made with exactly this text, so it must not be changed.
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def prompt_of(instruction: str, input: str = "") -> str:
    """The prompt of an instruction in the Alpaca template, with or without an input."""
    if input:
        return WITH_INPUT.format(instruction=instruction, input=input)
    return WITHOUT_INPUT.format(instruction=instruction)


@dataclass(frozen=True)
class Example:
    """A prompt, the answer for training, and all correct answers."""

    prompt: str
    answer: str
    references: tuple[str, ...]
    copied: str = ""  # the answer of copying: the input, or the instruction if there is no input
    place: str = ""  # file and line, for messages


@dataclass(frozen=True, eq=False)
class TextInfo(DataInfo):
    """Metadata of a text data set; `num_classes` is the size of the tokenizer's vocabulary."""

    tokenizer: Any = field(default=None, repr=False)
    longest: int = 0  # tokens of the longest input of a network
    task: str = "language"


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a JSON Lines file with `instruction`, `input` (may be missing) and `output` (a text or a list).

    A line may have a whole `prompt`, without the template, instead of instruction and input. Raises UserError, with
    file and line, for anything else, including empty answers.
    """
    try:
        lines = read_plain(path).removeprefix("\ufeff").split("\n")  # a text may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    examples = [_example(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise UserError(f"{path}: no examples")
    return examples


def _example(place, line):
    try:
        content = json.loads(line)
        whole = content.get("prompt")
        instruction = content["instruction"] if whole is None else whole
        given, output = content.get("input"), content["output"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{place}: expected an object with instruction, input and output ({type(error).__name__}: {error})"
        ) from None
    if given is None and whole is None and content.get("context"):
        raise UserError(f"{place}: expected input, found context, as databricks-dolly-15k calls it; rename it")
    given = "" if given is None else given
    output = (output,) if isinstance(output, str) else tuple(output) if isinstance(output, list) else ()
    if not all(isinstance(text, str) for text in (instruction, given, *output)):
        raise UserError(f"{place}: expected texts as instruction, input and output")
    if not output or not all(text.strip() for text in output):
        raise UserError(f"{place}: output: expected an answer, found an empty text")
    if any(map(SURROGATE.search, (instruction, given, *output))):
        raise UserError(f"{place}: expected texts of Unicode, found half of a surrogate pair")
    prompt = prompt_of(instruction, given) if whole is None else whole
    return Example(prompt, output[0], output, given or instruction, place)


def in_front(tokenizer, settings: CfgNode) -> list[int]:
    """The tokens with which every prompt begins, for `settings`, the node LM: the tokenizer's own, or none (LM.BOS).

    What a tokenizer puts at the end of a text is never used: an answer ends with one end-of-text token.
    """
    return beginning(tokenizer) if settings.BOS == "auto" else []


def within_limit(examples: Sequence[Example], tokenizer, settings: CfgNode, name: str,
                 answered: bool = True) -> list[tuple[Example, array]]:
    """The examples, each with the tokens of its prompt, for `settings`, the node LM; `name` is for messages.

    Prompts above the limit (LM.MAX_PROMPT, and one less than LM.MAX_LENGTH where they are `answered`, that is, followed
    by an answer of the set) are left out or cut (LM.LONG_PROMPTS), and their number is logged. The tokens of LM.BOS are
    not doubled where the text of a prompt begins with them. Raises UserError if no prompt is left, and for one of which
    the tokenizer makes no token.
    """
    prompts = tokens_of(tokenizer, [example.prompt for example in examples])
    if not all(prompts):
        empty = examples[[*map(len, prompts)].index(0)]
        raise UserError(f"{empty.place}: prompt: expected at least one token, found {shown(empty.prompt)}")
    first = array("i", in_front(tokenizer, settings))
    prompts = [prompt if prompt[: len(first)] == first else first + prompt for prompt in prompts]
    limit = prompt_limit(settings.MAX_PROMPT, settings.MAX_LENGTH) if answered else settings.MAX_PROMPT
    key = "LM.MAX_PROMPT" if limit == settings.MAX_PROMPT else "LM.MAX_LENGTH"
    long, drop = sum(len(prompt) > limit for prompt in prompts), settings.LONG_PROMPTS == "drop"
    if drop and long == len(prompts):
        raise UserError(f"{key}: all prompts of {name} have more than {limit} tokens")
    if long:
        log.info("%s: %d of %d prompts have more than %d tokens and are %s (%s, LM.LONG_PROMPTS)", name, long,
                 len(prompts), limit, "left out" if drop else "cut", key)
    return [(example, prompt[:limit]) for example, prompt in zip(examples, prompts, strict=True)
            if not drop or len(prompt) <= limit]


class TextData:
    """Batches of tokenized prompts and answers, with the interface of `mdistiller.data.base.Data`.

    A batch is a dict with ids, mask, places and labels (B, L), positions, group and target (n,), around (m,), see
    `collate`, and index (B,).
    """

    items = "examples"
    views_are_finite, view_numbers, flip = True, np.zeros(1, np.int64), False  # text has no augmentation

    def __init__(self, cfg: CfgNode, device, name: str, tokenizer, train: Sequence[Example],
                 held_out: dict[str, Sequence[Example]]):
        self.device, self.seed, self.settings = torch.device(device), order_seed(cfg), cfg.LM
        self.home = self.device
        self.batch_size, self.eval_batch_size = cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE
        self.accumulate, self.tokenizer = cfg.SOLVER.ACCUMULATE, tokenizer
        self.pad, self.end = tokenizer.eos_token_id, tokenizer.eos_token_id
        keep, val = train_val_positions(
            np.zeros(len(train), np.int64), cfg.DATASET.TRAIN_FRACTION, cfg.DATASET.VAL_FRACTION
        )
        if len(val) and "val" not in held_out:
            held_out = {"val": [train[number] for number in val], **held_out}
        self.examples = {"train": [train[number] for number in keep], **held_out}
        if first := in_front(tokenizer, self.settings):
            log.info("each prompt begins with %s, as the tokenizer's own texts (LM.BOS)", tokenizer.decode(first))
        self.samples = {split: self._tokenize(split) for split in self.examples}
        self.tokens = np.array([len(sample.answer) for sample in self.samples["train"]])
        number = len(self.tokens)
        if not self.num_batches:
            raise UserError(f"SOLVER.BATCH_SIZE: {self.batch_size} is more than the {number} training examples of "
                            f"{name}; expected less, or LM.DROP_LAST False")
        self.labels = np.zeros(number, np.int64)
        self.info = TextInfo(
            name=name, num_classes=len(tokenizer), num_train=number, image_size=0, mean=(), std=(), family="language",
            targets=torch.zeros(number, dtype=torch.int64), classes=None, hasher=self._fingerprint, tokenizer=tokenizer,
            longest=self._longest(),
        )

    def _longest(self):
        if self.settings.PADDING == "fixed":
            return self.settings.MAX_LENGTH
        whole = (len(sample.prompt) + len(sample.answer) for split in self.samples.values() for sample in split)
        return max(whole) - 1  # nothing follows the last token, so it is no input

    def _tokenize(self, split):
        chosen = within_limit(self.examples[split], self.tokenizer, self.settings, split)
        self.examples[split] = [example for example, _ in chosen]
        answers = tokens_of(self.tokenizer, [example.answer for example, _ in chosen])
        if ended := sum(self.end in answer for answer in answers):
            log.warning("%s: %d of %d answers hold the end-of-text token within their text (%s), where a student "
                        "learns to end", split, ended, len(answers), self.tokenizer.eos_token)
        limits = self.settings.MAX_PROMPT, self.settings.MAX_LENGTH
        return [cut(prompt, answer, self.end, *limits)._replace(references=example.references)
                for (example, prompt), answer in zip(chosen, answers, strict=True)]

    @property
    def num_batches(self) -> int:
        """Number of batches in a training epoch; a smaller last one is left out with LM.DROP_LAST."""
        number = len(self.tokens)
        return number // self.batch_size if self.settings.DROP_LAST else -(-number // self.batch_size)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in ("val", "test") if split in self.samples)

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of an epoch from number `start` on, as in `Data`; `share` is a fraction of the supervised tokens.

        With LM.REDUCTION sequence it is a fraction of the examples; with LM.AVERAGE micro_batch all shares are equal.
        """
        for number, order, piece, index in self._pieces(epoch, start, rank, world_size):
            batch = self.batch("train", index)
            if world_size > 1 or self.accumulate > 1:
                batch["share"] = self._share(number, piece, order, world_size)
            yield batch

    def batch(self, split: str, index: np.ndarray, fixed: bool | None = None) -> dict:
        """The batch, on the device, of the samples of a split at positions `index` (B,).

        `fixed` chooses fixed or dynamic padding; None follows LM.PADDING.
        """
        samples = [self.samples[split][number] for number in index]
        fixed = self.settings.PADDING == "fixed" if fixed is None else fixed
        length = self.settings.MAX_LENGTH if fixed else None
        arrays = collate(samples, self.pad, length)
        return {name: upload(array, self.device) for name, array in {**arrays, "index": np.asarray(index)}.items()}

    def _part(self, number):
        return slice(number * self.batch_size, (number + 1) * self.batch_size)

    def _share(self, number, piece, order, world_size):
        first = number - number % self.accumulate
        micro = range(first, min(first + self.accumulate, self.num_batches))
        if self.settings.AVERAGE == "micro_batch":
            return 1 / len(micro) if len(piece) else 0.0
        count = self.tokens if self.settings.REDUCTION == "token" else (self.tokens > 0).astype(np.int64)
        update = sum(int(count[order[self._part(other)]].sum()) for other in micro)
        return int(count[piece].sum()) * world_size / max(update, 1)

    def batch_index(self, epoch: int, step: int) -> np.ndarray:
        """Positions (B,) of the examples in global batch number `step` (from 0) of an epoch."""
        return permutation(self.seed, epoch, self.info.num_train)[self._part(step)]

    def eval_starts(self, split: str, rank: int = 0, world_size: int = 1) -> range:
        """Positions in a split at which the batches of `eval_batches` with the same arguments begin."""
        return range(rank * self.eval_batch_size, len(self.samples[split]), world_size * self.eval_batch_size)

    def eval_batches(self, split: str = "test", rank: int = 0, world_size: int = 1) -> Iterator[dict]:
        """All examples of a split once, in order, with their `samples` and the name of the `split`.

        With several ranks, each gets every `world_size`-th batch, which may be no batch at all.
        """
        for low in self.eval_starts(split, rank, world_size):
            index = np.arange(low, min(low + self.eval_batch_size, len(self.samples[split])))
            samples = [self.samples[split][position] for position in index]
            yield self.batch(split, index) | {"samples": samples, "split": split}

    def train_views(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[tuple]:
        """(index, zeros) of each batch of `train_batches` with the same arguments, as arrays."""
        for *_, index in self._pieces(epoch, start, rank, world_size):
            yield index, np.zeros(len(index), np.int64)

    def _pieces(self, epoch, start, rank, world_size):
        """(number, order of the epoch, part of this rank, the same or one sample in place of none) of each batch."""
        order = permutation(self.seed, epoch, self.info.num_train)
        for number in range(start, self.num_batches):
            batch = order[self._part(number)]
            piece = np.array_split(batch, world_size)[rank]
            yield number, order, piece, piece if len(piece) else batch[:1]

    def _fingerprint(self):
        digest = hashlib.sha256()
        for sample in self.samples["train"]:
            digest.update(repr((sample.prompt.tolist(), sample.answer.tolist())).encode())
        return digest.hexdigest()


def _file(cfg: CfgNode, key: str) -> Path:
    return Path(cfg.DATASET.ROOT) / cfg.LM[key]


def _registered(name: str) -> Callable:
    def build(cfg: CfgNode, device) -> TextData:
        tokenizer = load_tokenizer(cfg.LM.TOKENIZER or cfg.DISTILLER.STUDENT)
        for key in ("TRAIN_FILE", "TEST_FILE"):
            if not cfg.LM[key]:
                raise UserError(f"LM.{key}: expected a JSON Lines file below DATASET.ROOT {cfg.DATASET.ROOT}")
        limit = cfg.LM.EVAL_EXAMPLES or None
        held_out = {"val": read_examples(_file(cfg, "VAL_FILE"))[:limit]} if cfg.LM.VAL_FILE else {}
        held_out["test"] = read_examples(_file(cfg, "TEST_FILE"))[:limit]
        return TextData(cfg, device, name, tokenizer, read_examples(_file(cfg, "TRAIN_FILE")), held_out)

    build.__doc__ = "An instruction set from the files LM.TRAIN_FILE, LM.VAL_FILE (optional) and LM.TEST_FILE."
    return build


DATASETS.register("instructions")(_registered("instructions"))
DATASETS.register("dolly")(_registered("dolly"))
