"""Synthetic tasks with a few words, to try the distillation of language models in a minute and without files."""

import numpy as np
from yacs.config import CfgNode

from mdistiller.data.build import DATASETS
from mdistiller.data.hashing import random_bits
from mdistiller.data.instructions import Example, TextData
from mdistiller.data.tokenizers import word_tokenizer

NOUNS = (
    "apple bird boat book bread chair cloud coat door dress egg field fire fish flag flower glass hand hat horse "
    "house key lake lamp leaf letter moon mouse paper pen rain ring river road rope rose salt sand sea shoe sky snow "
    "spoon star stone street sun table tree wall water wind window wood"
).split()
TASKS = {
    "repeat": lambda words: words,
    "reverse": lambda words: words[::-1],
    "first": lambda words: words[:1],
    "last": lambda words: words[-1:],
}
FEWEST, MOST = 2, 5
NUM_TRAIN, NUM_TEST = 4096, 256
SEED = 77  # of the examples, which are the same in every run
ANSWER = ":"  # the last word of a prompt


def make_examples(number: int) -> list[Example]:
    """`number` different examples, always the same ones, such as "reverse apple bird sea :" with "sea bird apple"."""
    bits = random_bits(SEED, 0, 0, np.arange(2 * number))[:, 0]
    examples, seen = [], set()
    for draw in bits:
        value, words = int(draw), []
        value, task = divmod(value, len(TASKS))
        value, length = divmod(value, MOST - FEWEST + 1)
        for _ in range(FEWEST + length):
            value, word = divmod(value, len(NOUNS))
            words.append(NOUNS[word])
        name = list(TASKS)[task]
        prompt, answer = " ".join([name, *words, ANSWER]), " ".join(TASKS[name](words))
        if prompt not in seen:
            seen.add(prompt)
            examples.append(Example(prompt, answer, (answer,), " ".join(words)))
    return examples[:number]


@DATASETS.register("words")
def words(cfg: CfgNode, device) -> TextData:
    """4,096 training and 256 test examples, all different: repeat, reverse, first or last of 2 to 5 out of 54 words.

    The examples are generated, without files, and the tokenizer has whole words. A model with two layers of width 64
    learns all four tasks.
    """
    examples = make_examples(NUM_TRAIN + NUM_TEST)
    tokenizer = word_tokenizer([*TASKS, ANSWER, *NOUNS])
    return TextData(cfg, device, "words", tokenizer, examples[:NUM_TRAIN], {"test": examples[NUM_TRAIN:]})
