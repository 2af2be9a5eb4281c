"""Tokenizers of transformers by name, and a small tokenizer of whole words."""

from array import array
from collections.abc import Sequence
from pathlib import Path

from mdistiller.errors import UserError, first_line
from mdistiller.libraries import import_transformers, source_of

END_OF_WORDS = "<end>"
TOGETHER = 1000  # texts


def load_tokenizer(name: str):
    """The tokenizer of a folder, a GGUF file or a hub name. Raises UserError if it is missing or has no EOS token."""
    tokenizer = find_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"LM.TOKENIZER: {name} has no end-of-text token, with which every answer ends")
    return tokenizer


def find_tokenizer(name: str):
    """The tokenizer of a folder, a GGUF file or a hub name. Raises UserError if there is none."""
    transformers = import_transformers()
    place, keywords = source_of(name)
    try:
        if {path.name for path in Path(place).glob("*.*")} >= {"vocab.json", "merges.txt"} and not (
            Path(place) / "tokenizer_config.json"
        ).exists():  # GPT-2 was published without the name of the tokenizer's class
            tokenizer = transformers.GPT2Tokenizer(str(Path(place) / "vocab.json"), str(Path(place) / "merges.txt"))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **keywords)
        if not own_tokens(tokenizer):  # transformers makes an empty one of a folder with config.json alone
            raise ValueError("no vocabulary")
        tokenizer("")  # settings of wrong types are noticed in use; no letter, as a vocabulary may lack any
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {name} needs gguf: pip install 'mdistiller-ea[llm]' ({first_line(error)})"
        ) from None
    except Exception as error:  # damaged files raise nearly anything
        raise UserError(
            f"LM.TOKENIZER: no tokenizer {name!r}: expected a folder with tokenizer.json (or vocab.json and "
            f"merges.txt), a .gguf file, or a name of the reachable Hugging Face hub ({first_line(error)})"
        ) from None
    return tokenizer


def tokens_of(tokenizer, texts: Sequence[str]) -> list[array]:
    """The tokens of each text, without special ones around it.

    They take 4 bytes each, a ninth of a list of numbers. A tokenizer is given `TOGETHER` texts at a time, because what
    it returns beside the tokens (offsets, words, masks) takes about a hundred bytes for each of them.
    """
    pieces = (list(texts[low : low + TOGETHER]) for low in range(0, len(texts), TOGETHER))
    return [array("i", row) for piece in pieces for row in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def beginning(tokenizer) -> list[int]:
    """The tokens that a tokenizer itself puts in front of a text, such as [1] for LLaMA's <s>; GPT-2's puts none."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:place] for place in places if whole[place : place + len(bare)] == bare), [])


def own_tokens(tokenizer) -> dict[int, str]:
    """The tokens of a vocabulary by number, without those that were added to it, such as special tokens."""
    added = tokenizer.get_added_vocab()
    return {number: token for token, number in tokenizer.get_vocab().items() if token not in added}


def first_difference(tokenizer, other) -> tuple[int, str, str] | None:
    """The first number that means different tokens in two tokenizers, as (number, token, the other's token), or None.

    Tokens that only one of the vocabularies has, and added tokens, may differ, except for the end-of-text token.
    """
    one, two = own_tokens(tokenizer), own_tokens(other)
    end, names = tokenizer.eos_token_id, {number: token for token, number in other.get_vocab().items()}
    if end in names:
        one, two = one | {end: tokenizer.eos_token}, two | {end: names[end]}
    number = min((number for number in one.keys() & two.keys() if one[number] != two[number]), default=None)
    return None if number is None else (number, one[number], two[number])


def word_tokenizer(words: list[str]):
    """A tokenizer of transformers for these words, separated by spaces, and an end-of-text token with number 0."""
    transformers = import_transformers()
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    numbers = {word: number for number, word in enumerate([END_OF_WORDS, *words])}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=END_OF_WORDS))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_WORDS, pad_token=END_OF_WORDS, bos_token=END_OF_WORDS
    )
