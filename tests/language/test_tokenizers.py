"""Vocabularies of one size that mean other tokens."""

import json

import pytest

from mdistiller.data import build_data
from mdistiller.data.tokenizers import first_difference, load_tokenizer
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
    with pytest.raises(UserError, match=r"LM.TOKENIZER: no tokenizer .*bare.*\(ValueError: no vocabulary\)"):
        load_tokenizer(str(folder / "bare"))
