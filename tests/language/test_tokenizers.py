"""Tokens that a tokenizer puts in front of a text, and vocabularies of one size that mean other tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mdistiller.data import build_data
from mdistiller.data.instructions import read_examples, within_limit
from mdistiller.data.tokenizers import (
    TOGETHER,
    beginning,
    first_difference,
    load_tokenizer,
    tokens_of,
    word_tokenizer,
)
from mdistiller.engine.generation import _source
from mdistiller.errors import UserError
from mdistiller.models.language import build_language_model
from mdistiller.tasks import build_task
from tests.language.support import config

transformers, tokenizers = map(pytest.importorskip, ("transformers", "tokenizers"))
BEGIN, END, A, B, AB = range(5)
LETTERS = {"<s>": BEGIN, "</s>": END, "a": A, "b": B, "ab": AB}
SWAPPED = {"<s>": BEGIN, "</s>": END, "b": 2, "a": 3, "ab": 4}


def letters(numbers=LETTERS, template="{begin} $A {end}", begin="<s>", end="</s>"):
    """A byte-pair tokenizer of the letters a and b; by default its texts begin with <s> and end with </s>."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, [("a", "b")]))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template.format(begin=begin, end=end), special_tokens=[(token, numbers[token]) for token in (begin, end)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of three prompts, a student's tokenizer, and a folder for each teacher's weights and tokenizer."""
    place = tmp_path_factory.mktemp("letters")
    lines = [{"prompt": prompt, "output": "ba"} for prompt in ("ab", "<s>ab", "abb")]
    (place / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    letters().save_pretrained(place / "student")
    more = letters()
    more.add_special_tokens({"pad_token": "<pad>"})
    for name, tokenizer in {"same": letters(), "swapped": letters(SWAPPED), "padded": more, "bare": None}.items():
        build_language_model("tiny_1x16", 8).inner.save_pretrained(place / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(place / name)
    return place


def config_of(folder, *opts):
    return config("FKL", "DATASET.TYPE", "instructions", "DATASET.ROOT", str(folder), "LM.TRAIN_FILE", "set.jsonl",
                  "LM.TEST_FILE", "set.jsonl", "LM.TOKENIZER", str(folder / "student"), "DATASET.TRAIN_FRACTION", 1.0,
                  "DATASET.VAL_FRACTION", 0.0, "SOLVER.BATCH_SIZE", 1, *opts)


def test_a_teacher_whose_tokens_have_other_numbers_is_refused_and_names_the_first(folder):
    for name in ("same", "swapped", "padded", "bare"):
        cfg = config_of(folder, "DISTILLER.TEACHER", str(folder / name))
        task = build_task(cfg, build_data(cfg, "cpu").info)
        if name == "swapped":
            with pytest.raises(UserError) as caught:
                task.network("TEACHER", pretrained=True)
            assert str(caught.value) == (
                f"DISTILLER.TEACHER: {folder / name} has another tokenizer than {folder / 'student'} (LM.TOKENIZER): "
                "token 2 is 'b' there and 'a' here; expected the same vocabulary")
        else:
            assert task.network("TEACHER", pretrained=True).vocabulary == 8


def test_the_end_of_text_token_must_be_the_teachers_and_other_added_tokens_may_differ(folder):
    begun, ended = ({{token: new}.get(name, name): number for name, number in LETTERS.items()}
                    for token, new in (("<s>", "<begin>"), ("</s>", "<end>")))
    assert first_difference(letters(), letters(begun, begin="<begin>")) is None
    assert first_difference(letters(), letters(ended, end="<end>")) == (END, "</s>", "<end>")


def test_a_folder_with_a_network_alone_has_no_tokenizer(folder):
    with pytest.raises(UserError, match=r"LM.TOKENIZER: no tokenizer .*bare\'"):
        load_tokenizer(str(folder / "bare"))


def test_a_prompt_begins_once_with_what_the_tokenizer_puts_in_front_and_an_answer_ends_once(folder):
    data = build_data(config_of(folder), "cpu")
    samples = data.samples["train"]
    assert [sample.prompt.tolist() for sample in samples] == [[BEGIN, AB], [BEGIN, AB], [BEGIN, AB, B]]
    assert [sample.answer.tolist() for sample in samples] == [[B, A, END]] * 3
    assert data.info.longest == 5
    batch = data.batch("train", np.array([0]))
    assert batch["ids"].tolist() == [[BEGIN, AB, B, A]]
    assert batch["labels"].tolist() == [[-100, B, A, END]] and batch["target"].tolist() == [B, A, END]
    bare = build_data(config_of(folder, "LM.BOS", "none"), "cpu")
    assert [sample.prompt.tolist() for sample in bare.samples["train"]] == [[AB], [BEGIN, AB], [AB, B]]
    assert bare.info.fingerprint != data.info.fingerprint  # of a teacher cache
    fewer = build_data(config_of(folder, "LM.MAX_PROMPT", 2), "cpu")
    assert [sample.prompt.tolist() for sample in fewer.samples["train"]] == [[BEGIN, AB]] * 2


def test_many_texts_are_tokenized_piece_by_piece_into_numbers_of_four_bytes():
    tokenizer, sizes = letters(), []

    def counted(texts, **options):
        sizes.append(len(texts))
        return tokenizer(texts, **options)

    texts = ["ab" * (number % 3 + 1) for number in range(2 * TOGETHER + 1)]
    found = tokens_of(counted, texts)
    assert sizes == [TOGETHER, TOGETHER, 1] and {tokens.itemsize for tokens in found} == {4}
    assert [tokens.tolist() for tokens in found] == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_answers_that_end_within_their_text_are_told(folder, tmp_path, caplog):
    lines = [{"prompt": "ab", "output": text} for text in ("ba", "b</s>a", "ba")]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level("WARNING"):
        build_data(config_of(folder), "cpu")
        assert not caplog.text
        data = build_data(config_of(folder, "DATASET.ROOT", str(tmp_path)), "cpu")
    assert "train: 1 of 3 answers hold the end-of-text token within their text (</s>)" in caplog.text
    assert data.samples["train"][1].answer.tolist() == [B, END, A, END]


def test_answers_have_the_same_prompts_and_are_not_mixed_with_those_of_other_beginnings(folder):
    network, examples = build_language_model("tiny_1x16", 8), read_examples(folder / "set.jsonl")

    def answers(tokenizer, *opts):
        cfg = config_of(folder, *opts)
        chosen = within_limit(examples, tokenizer, cfg.LM, "set", answered=False)
        run = SimpleNamespace(cfg=cfg, task=SimpleNamespace(info=SimpleNamespace(tokenizer=tokenizer)))
        return [prompt.tolist() for _, prompt in chosen][0], _source(run, network)

    (prompt, source), (bare, before) = answers(letters()), answers(letters(), "LM.BOS", "none")
    assert prompt == [BEGIN, AB] and bare == [AB] and source != before
    words = word_tokenizer(["ab"])
    assert answers(words) == answers(words, "LM.BOS", "none") == ([1], before)  # nothing in front: as it always was


def test_only_what_is_in_front_of_a_text_is_a_beginning():
    found = [beginning(letters(template=template)) for template in ("<s> $A", "<s> <s> $A </s>", "$A </s>", "$A")]
    assert found == [[BEGIN], [BEGIN, BEGIN], [], []]


def test_a_vocabulary_of_whole_words_without_one_for_unknown_words_is_taken(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "one": 1, "two": 2}))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("two")["input_ids"] == [2]
