"""Sampled answers, Rouge-L, and their files."""

import copy
import hashlib
import io
import json
import math
import os

import pytest
import torch
from tqdm import tqdm

from mdistiller.data import build_data
from mdistiller.data.instructions import WITH_INPUT, WITHOUT_INPUT, prompt_of, read_examples
from mdistiller.engine import checkpoints, generation
from mdistiller.errors import UserError
from mdistiller.models.decoding import Decoding, Repeats, filtered, generate
from mdistiller.models.language import build_language_model
from mdistiller.tasks import build_task, language, rouge
from mdistiller.tasks.language import decoding_of
from mdistiller.tasks.rouge import exact, rouge_l
from tests import forked
from tests.language.goldens import ARRAYS
from tests.language.support import config, distiller_of

GIVEN = os.environ.get("MDISTILLER_TEST_DATA")
SOURCE = "0123456789ab"  # the hash that names weights and settings


@pytest.fixture(scope="module")
def words():
    """(network, data) of the shipped teacher."""
    data = build_data(config(), "cpu")
    network = build_language_model("tiny_2x64", data.info.num_classes)
    checkpoints.load_network(network, "checkpoints/words/tiny_2x64.pth", "tiny_2x64")
    return network.eval(), data


def test_the_shipped_teacher_solves_the_synthetic_tasks(words):
    network, data = words
    tokenizer = data.tokenizer
    prompts = ["reverse apple sea door :", "first lamp key boat horse :", "last lamp key boat horse :",
               "repeat sky sun :"]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    found = generate(network, ids, range(4), data.end, Decoding("greedy", max_new_tokens=8))
    assert [tokenizer.decode(answer) for answer in found] == ["door sea apple", "lamp", "horse", "sky sun"]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_example_gets_the_same_answer_whatever_the_batch_is(words, temperature):
    network, data = words
    prompts = [sample.prompt for sample in data.samples["test"][:7]]
    decoding = Decoding(temperature=temperature, max_new_tokens=6)
    together = generate(network, prompts, range(7), data.end, decoding, seed=3)
    alone = [generate(network, [prompts[k]], [k], data.end, decoding, seed=3)[0] for k in range(7)]
    halves = generate(network, prompts[4:], range(4, 7), data.end, decoding, seed=3)
    assert together == alone and together[4:] == halves
    assert all(data.end not in answer for answer in together)
    if temperature > 1:
        assert together != generate(network, prompts, range(7), data.end, decoding, seed=4)


def test_the_length_of_an_answer_depends_on_its_own_prompt_alone(words):
    network, data = words  # which knows 64 positions
    network = copy.deepcopy(network)
    network.inner.lm_head.register_forward_hook(  # the end-of-text token is never the most probable one
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([data.end]), -torch.inf))
    prompts = [[3, 4, 5], [*range(5, 55), *range(5, 15)], [*range(5, 55), *range(5, 18)]]
    decoding = Decoding("greedy", max_new_tokens=30)
    together = generate(network, prompts, range(3), data.end, decoding)
    assert [len(answer) for answer in together] == [30, 4, 1]
    assert together == [generate(network, [prompt], [0], data.end, decoding)[0] for prompt in prompts]
    with pytest.raises(UserError, match="a prompt of 64 tokens leaves no room for an answer; expected less than"):
        generate(network, [[3, 4], [5] * 64], range(2), data.end, decoding)


def test_gumbel_noise_draws_from_the_distribution_of_the_logits():
    class Constant(torch.nn.Module):
        vocabulary, positions = 3, None

        def next_logits(self, ids, mask, places, cache=None):
            return torch.tensor([[0.5, 0.3, 0.2]]).log().expand(len(ids), 3), None

    number = 4000
    drawn = generate(Constant(), [[1]] * number, range(number), 9, Decoding(max_new_tokens=1))
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=3) / number
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.03)


@pytest.mark.parametrize("sampling", ["per_example", "global"])
def test_noise_is_a_function_of_the_seed_and_of_each_example_or_the_first_of_the_batch(sampling):
    """With equal logits the token with the largest uniform number is taken, as Gumbel noise increases with it."""
    class Equal(torch.nn.Module):
        vocabulary, positions = 50, None

        def next_logits(self, ids, mask, places, cache=None):
            return torch.zeros(len(ids), 50), None

    found = generate(Equal(), [[1], [1]], [3, 8], 99, Decoding(sampling, max_new_tokens=2), seed=7)
    first, second = (torch.Generator().manual_seed(7 * 1_000_003 + key) for key in (3, 8))
    expected = []
    for _ in range(2):  # steps
        numbers = torch.rand((2, 50), generator=first) if sampling == "global" else torch.stack(
            [torch.rand(50, generator=one) for one in (first, second)])
        expected.append(numbers.argmax(dim=1))
    assert found == torch.stack(expected, dim=1).tolist()


def test_a_number_of_zero_lets_no_other_token_than_those_of_top_k_be_drawn(monkeypatch):
    class Sure(torch.nn.Module):
        vocabulary, positions = 3, None

        def next_logits(self, ids, mask, places, cache=None):
            return torch.tensor([[0.0, 0.0, 1.0]]), None

    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    assert generate(Sure(), [[1]], [0], 9, Decoding(top_k=1, max_new_tokens=1)) == [[2]]


def test_no_ngram_is_repeated_including_those_of_the_prompt(words):
    network, data = words
    decoding = Decoding(temperature=5.0, max_new_tokens=30, no_repeat_ngram=2)
    prompts = [sample.prompt for sample in data.samples["test"][:4]]
    answers = generate(network, prompts, range(4), data.end, decoding, seed=1)
    assert max(map(len, answers)) > 10
    for prompt, answer in zip(prompts, answers, strict=True):
        pairs = list(zip([*prompt, *answer], [*prompt, *answer][1:], strict=False))
        made = pairs[len(prompt) - 1 :]
        assert all(pairs.count(pair) == 1 for pair in made)
    history = Repeats([1, 2, 3, 1, 2], 3)
    assert history.banned() == {3}
    assert Repeats([1, 2, 3, 1, 2], 0).banned() == set()


def test_top_k_and_top_p_keep_the_most_probable_tokens():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    free = [Repeats([], 0)]
    assert filtered(logits, free, Decoding(top_k=2)).isfinite().tolist() == [[True, True, False, False]]
    assert filtered(logits, free, Decoding(top_p=0.65)).isfinite().tolist() == [[True, True, False, False]]
    assert filtered(logits, free, Decoding(top_p=0.75)).isfinite().tolist() == [[True, True, True, False]]
    torch.testing.assert_close(filtered(logits, free, Decoding(temperature=2.0)), logits / 2)
    kept = {  # at temperature 2 the first two have 0.61; of the three that top-k leaves, they have 7 / 9
        Decoding(temperature=2.0, top_p=0.65): [True, True, True, False],
        Decoding(top_k=3, top_p=0.75): [True, True, False, False],
    }
    for decoding, expected in kept.items():
        assert filtered(logits, free, decoding).isfinite().tolist() == [expected]
    assert filtered(torch.zeros(1, 4), free, Decoding(top_p=0.5)).isfinite().sum() == 2
    repeated = [Repeats([0, 0], 2)]  # a third 0 would repeat the pair
    assert filtered(logits, repeated, Decoding(top_k=2, no_repeat_ngram=2)).isfinite().tolist() == [
        [False, True, True, False]]


def test_the_settings_of_generation_reach_it():
    settings = {"SAMPLING": "global", "TEMPERATURE": 2.0, "TOP_P": 0.5, "TOP_K": 3, "MAX_NEW_TOKENS": 4,
                "NO_REPEAT_NGRAM": 5}
    opts = [word for name, value in settings.items() for word in (f"GENERATION.{name}", value)]
    assert decoding_of(config("SFT", *opts)) == Decoding("global", 2.0, 0.5, 3, 4, 5)


def test_the_first_examples_are_answered_and_those_of_validation_repeatedly_with_other_seeds(monkeypatch):
    cfg = config("SFT", "GENERATION.EXAMPLES", 3, "GENERATION.REPEATS", 2, "GENERATION.BATCH_SIZE", 2,
                 "GENERATION.SEED", 5, "DATASET.VAL_FRACTION", 0.01, "DATASET.TEST.BATCH_SIZE", 8)
    distiller, data = distiller_of(cfg)
    asked = []

    def answer(network, prompts, keys, seed, device):
        asked.append((seed, *keys))
        return ["" for _ in prompts]

    monkeypatch.setattr(distiller.task, "answer", answer)
    for split, expected in (("test", [(5, 0, 1), (5, 2)]), ("val", [(5, 0, 1), (15, 0, 1), (5, 2), (15, 2)])):
        result = distiller.task.evaluate(distiller.student, [next(data.eval_batches(split))])
        assert asked == expected and result["rouge_l"] == 0.0
        asked.clear()


def test_an_answer_ends_where_the_model_writes_the_end_of_text_in_letters(words, monkeypatch):
    data = words[1]
    task = build_task(config("SFT"), data.info)
    ids = [data.tokenizer("sun moon")["input_ids"] + [data.end]]
    monkeypatch.setattr(language, "generate", lambda *args: ids)
    assert task.answer(None, [[1]], [0], 0) == ["sun moon"]
    monkeypatch.setattr(data.tokenizer, "batch_decode", lambda new, skip_special_tokens: [" sun <|endoftext|> moon"])
    assert task.answer(None, [[1]], [0], 0) == ["sun"]


def test_rouge_l_by_hand():
    # "a b c d" against "a c d e": the longest common subsequence is a c d: precision 3/4, recall 3/4
    assert rouge_l("a b c d", ["a c d e"]) == pytest.approx(75.0)
    # the stemmer makes "running" and "runs" one word; case and punctuation do not count; the best reference does
    assert rouge_l("Running, fast!", ["something else", "runs fast"]) == pytest.approx(100.0)
    # one word of one, one of three: precision 1, recall 1/3
    assert rouge_l("sun", ["the sun shines"]) == pytest.approx(50.0)
    assert rouge_l("", ["something"]) == 0.0
    assert exact(" sun ", ["moon", "sun"]) == 100.0 and exact("The sun", ["sun"]) == 0.0


def test_rouge_l_tells_once_that_it_does_not_see_other_scripts(caplog):
    rouge._say_once.cache_clear()
    with caplog.at_level("WARNING"):
        assert rouge_l("Grüße 3", ["Grüße 3"]) == pytest.approx(100.0) and not caplog.text
        for text in ("привет мир", "שלום", "你好"):
            assert rouge_l(text, [text]) == 0.0 and exact(text, [text]) == 100.0
    assert caplog.text.count("Rouge-L compares only words of the letters a to z and digits") == 1


def test_scores_of_answers_equal_the_reference():
    pairs = {1: ("", ["something"]), 5: ("the the the the", ["the"]), 8: ("A, b; C! d?", ["a b c d"]),
             9: ("one two three four five six", ["six five four three two one", "one three five"])}
    for place, (answer, references) in pairs.items():
        assert rouge_l(answer, references) == pytest.approx(100 * ARRAYS["rouge/score"][place], rel=1e-9)
        assert exact(answer, references) == 100 * ARRAYS["rouge/exact_match"][place]
    assert ARRAYS["rouge/exact_match"][8] == 1


def test_the_templates_are_the_published_bytes_and_texts_with_braces_stay_as_they_are():
    assert prompt_of("Do {input}.", "a\n{b}") == (
        WITH_INPUT.replace("{input}", "a\n{b}").replace("{instruction}", "Do {input}.")
    )
    digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (WITHOUT_INPUT, WITH_INPUT)]
    assert digests == ["7768da83ee0feb38", "f1b8970aa9b05de4"]


@pytest.mark.skipif(not GIVEN, reason="MDISTILLER_TEST_DATA does not name a folder with real instruction sets")
def test_the_templates_have_as_many_gpt2_tokens_as_published_and_real_prompts_fit():
    cfg = config("SFT", "DATASET.TYPE", "dolly", "DATASET.ROOT", f"{GIVEN}/llm_data", "LM.TOKENIZER",
                 f"{GIVEN}/llm_data/gpt2_tokenizer", "LM.TRAIN_FILE", "dolly_train_open_qa.jsonl", "LM.TEST_FILE",
                 "dolly_test.jsonl", "LM.MAX_PROMPT", 256, "LM.MAX_LENGTH", 512, "DATASET.TRAIN_FRACTION", 1.0)
    data = build_data(cfg, "cpu")
    assert len(data.tokenizer) == 50257 and data.end == 50256
    empty = [len(data.tokenizer(prompt)["input_ids"]) for prompt in (prompt_of(""), WITH_INPUT.format(
        instruction="", input=""))]
    assert empty == [29, 43]
    assert len(data.samples["test"]) == 500 and max(len(sample.prompt) for sample in data.samples["test"]) == 256


def write_set(path, number):
    lines = [{"instruction": "sun", "input": "moon", "output": ["moon star", "star"]}] * number
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_stopped_evaluation_continues_to_the_same_file(tmp_path):
    write_set(tmp_path / "set.jsonl", 10)
    examples, asked = read_examples(tmp_path / "set.jsonl"), []

    def answer(part, numbers):
        asked.extend(numbers)
        return [(f"star {number}", 2) for number in numbers]

    whole = tmp_path / "free_seed1.jsonl"
    generation._complete(whole, examples, answer, 4, SOURCE)
    expected = whole.read_bytes()
    cut_off = tmp_path / "x_free_seed2.jsonl"
    cut_off.write_bytes(expected[: expected.index(b"\n", 900) + 20])  # within a line
    before = sum(line.endswith("\n") for line in cut_off.read_text().splitlines(keepends=True))
    asked.clear()
    generation._complete(cut_off, examples, answer, 4, SOURCE)
    assert cut_off.read_bytes() == expected and asked == list(range(before, 10)) and 0 < before < 10


def test_a_large_set_shows_how_many_answers_there_are(tmp_path, monkeypatch, caplog):
    bars, path = [], tmp_path / "set_free_seed1.jsonl"

    def shown(total, description, **options):
        bars.append(tqdm(total=total, desc=description, file=io.StringIO(), **options))
        return bars[-1]

    monkeypatch.setattr(generation, "progress", shown)
    monkeypatch.setattr(generation.log, "propagate", True)
    write_set(tmp_path / "set.jsonl", 10)
    examples = read_examples(tmp_path / "set.jsonl")
    for number in (6, 10, 10):
        with caplog.at_level("INFO"):
            generation._complete(path, examples[:number], lambda part, numbers: [("star", 1)] * len(part), 4, SOURCE)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 6, 6), (6, 10, 10), (10, 10, 10)]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{path}: 0 of 6 answers are stored", f"{path}: 6 of 10 answers are stored"]


def test_scores_average_examples_first_and_show_the_spread_over_decoding_seeds(tmp_path):
    write_set(tmp_path / "set.jsonl", 2)
    examples = read_examples(tmp_path / "set.jsonl")
    for seed, text in ((10, "star"), (20, "nothing here")):
        generation._complete(tmp_path / f"dolly_ngram6_seed{seed}.jsonl", examples,
                             lambda part, numbers, text=text: [(text, 1)] * len(part), 32, SOURCE)
    scores = generation.summarize(tmp_path)["dolly"]["ngram6"]
    assert scores["rouge_l"] == pytest.approx(50) and scores["rouge_l_std"] == pytest.approx(5000**0.5)
    assert scores["seeds"] == [10, 20] and scores["examples"] == 2 and scores["exact"] == pytest.approx(50)
    assert json.loads((tmp_path / "scores.json").read_text())["dolly"]["ngram6"]["examples"] == 2


def test_seeds_with_fewer_answers_are_not_averaged_with_whole_ones(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(generation.log, "warning", lambda text, *words: said.append(text % words))
    write_set(tmp_path / "set.jsonl", 3)
    examples = read_examples(tmp_path / "set.jsonl")
    for seed, text, number in ((10, "star", 3), (20, "nothing here", 1), (30, "star", 3)):
        generation._complete(tmp_path / f"dolly_free_seed{seed}.jsonl", examples[:number],
                             lambda part, numbers, text=text: [(text, 1)] * len(part), 32, SOURCE)
    scores = generation.summarize(tmp_path)["dolly"]["free"]
    assert scores["rouge_l"] == pytest.approx(100) and scores["rouge_l_std"] == pytest.approx(0)
    assert scores["seeds"] == [10, 30] and scores["examples"] == 3
    assert said == [f"{tmp_path}: dolly, free: left out, as others have 3 answers: seed 20 with 1"]


@pytest.mark.parametrize("damage", [
    b"\xff", b"[" * 100_000, b"[]", b'{"index": 2}',
    *({"rouge_l": value} for value in ("x", "50", 10**400, math.nan, 1e308, None)),
    {"exact": "0"}, {"tokens": 1e31}, {"index": 2.0}, {"index": "2"}, {"answer": 3}, {"references": "star"}], ids=str)
def test_a_damaged_line_of_answers_and_those_after_it_are_made_anew(damage, tmp_path):
    write_set(tmp_path / "set.jsonl", 4)
    file, asked = tmp_path / "set_free_seed1.jsonl", []

    def answer(part, numbers):
        asked.extend(numbers)
        return [("star", 1) for _ in numbers]

    generation._complete(file, read_examples(tmp_path / "set.jsonl"), answer, 4, SOURCE)
    whole = file.read_bytes()
    lines = whole.split(b"\n")
    damage = json.dumps(json.loads(lines[2]) | damage).encode() if isinstance(damage, dict) else damage
    file.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    assert generation.summarize(tmp_path)["set"]["free"]["examples"] == 2
    asked.clear()
    generation._complete(file, read_examples(tmp_path / "set.jsonl"), answer, 4, SOURCE)
    assert file.read_bytes() == whole and asked == [2, 3]


def test_answers_are_written_by_one_process_and_never_mixed_with_those_of_another_set(tmp_path):
    write_set(tmp_path / "set.jsonl", 2)
    file, examples = tmp_path / "set_free_seed1.jsonl", read_examples(tmp_path / "set.jsonl")
    (tmp_path / "mine_seedx.jsonl").write_text("of somebody else\n")

    def answer(part, numbers):
        done = forked.run_together([lambda: generation._complete(file, examples, answer, 2, SOURCE)])
        assert "another process writes these answers" in done[0].stderr
        return [("star", 1) for _ in numbers]

    generation._complete(file, examples, answer, 2, SOURCE)
    assert list(generation.summarize(tmp_path)) == ["set"]
    with pytest.raises(UserError, match="set_free_seed1.jsonl: these answers were generated with other weights"):
        generation._complete(file, examples, answer, 2, "another")
    (tmp_path / "set.jsonl").write_text('{"instruction": "moon", "output": "sun"}\n')
    with pytest.raises(UserError, match="answer 0 is to another prompt than the set now has"):
        generation._complete(file, read_examples(tmp_path / "set.jsonl"), answer, 2, SOURCE)


def test_texts_keep_their_line_separators_and_a_byte_order_mark_is_none_of_them(tmp_path):
    line = json.dumps({"instruction": "one\u2028two\x85", "output": "a"}, ensure_ascii=False)
    (tmp_path / "set.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert [example.prompt for example in read_examples(tmp_path / "set.jsonl")] == [prompt_of("one\u2028two\x85")]


@pytest.mark.parametrize(("line", "words"), [
    ("[" * 100_000, "RecursionError"), ('{"instruction": "\\ud800", "output": "a"}', "half of a surrogate pair"),
    ('{"instruction": 3, "output": "a"}', "expected texts"),
    ('{"instruction": "a", "input": 0, "output": "a"}', "expected texts"),
    ('{"instruction": "a", "context": "b", "output": "a"}', "expected input, found context"),
    ('{"instruction": "a", "output": " "}', "an empty text")])
def test_a_line_that_is_no_example_is_named(line, words, tmp_path):
    (tmp_path / "set.jsonl").write_text(line)
    with pytest.raises(UserError, match=f"set.jsonl:1: .*{words}"):
        read_examples(tmp_path / "set.jsonl")


@pytest.mark.skipif(not GIVEN, reason="MDISTILLER_TEST_DATA does not name a folder with real instruction sets")
def test_copying_the_input_and_shuffled_references_score_what_the_reference_metric_gives():
    from tests.language.goldens import ARRAYS

    folder = os.path.join(GIVEN, "llm_data")
    test = read_examples(os.path.join(folder, "dolly_test.jsonl"))
    shuffled = ARRAYS["rouge/dolly_shuffle_index"]
    scores = [rouge_l(test[other].answer, example.references) for example, other in zip(test, shuffled, strict=True)]
    assert sum(scores) / len(scores) == pytest.approx(float(ARRAYS["rouge/dolly_shuffle_mean"]), abs=1e-4)
    copied = {"dolly_test": 21.06, "self_inst": 14.52, "vicuna": 10.86, "s_ni_11": 44.14}
    for name, expected in copied.items():
        examples = read_examples(os.path.join(folder, f"{name}.jsonl"))
        scores = [rouge_l(example.copied, example.references) for example in examples]
        assert sum(scores) / len(scores) == pytest.approx(expected, abs=0.006), name
