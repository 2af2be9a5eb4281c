"""Runs of language models: training, stopping, resuming and their files."""

import builtins
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from mdistiller.analysis import files, measure
from mdistiller.analysis.samples import write_samples
from mdistiller.analysis.token_weights import token_weights
from mdistiller.config import load_cfg
from mdistiller.config.stated import flatten
from mdistiller.data import build_data, instructions
from mdistiller.data.tokenizers import word_tokenizer
from mdistiller.engine.export import export_run
from mdistiller.engine.generation import evaluate_answers
from mdistiller.engine.setup import build_run, train
from mdistiller.engine.trainer import Trainer
from mdistiller.errors import RunError, UserError
from mdistiller.models import language
from mdistiller.models.language import Tokens, build_language_model, keep_layers
from mdistiller.report.page import report
from mdistiller.runs.records import find_runs
from mdistiller.tasks import rouge
from mdistiller.tasks.language import Language
from tests.engine.support import REPOSITORY, assert_same_weights, command

FAST = ("DEVICE", "cpu", "DATASET.TRAIN_FRACTION", 0.05, "SOLVER.EPOCHS", 2, "GENERATION.EXAMPLES", 32,
        "SOLVER.BATCH_SIZE", 32, "DATASET.VAL_FRACTION", 0.01, "LOG.SAVE_CHECKPOINT_STEPS", 1)


def fast_cfg(folder, method="ea_fkl", *opts):
    return load_cfg(f"configs/words/{method}/tiny.yaml", [*FAST, "LOG.PREFIX", str(folder), *opts])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    train(fast_cfg(folder))
    return next(folder.glob("*/*"))


def test_a_run_says_what_it_measured_and_is_chosen_by_rouge_l_on_validation_examples(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "done" and summary["headline"] == "rouge_l" and summary["selected_on"] == "val"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"val_rouge_l", "test_rouge_l", "test_exact", "test_accuracy", "test_loss", "weight_mean", "weight_std",
            "train_accuracy", "train_ce", "train_kd", "tokens_per_second"} <= lines[-1].keys()
    best = max(lines, key=lambda line: (line["val_rouge_l"], line["epoch"]))
    assert summary["best_epoch"] == best["epoch"] and summary["best_rouge_l"] == best["test_rouge_l"]
    assert json.loads((finished / "run.json").read_text())["teacher_rouge_l"] > 90


def test_a_run_stopped_within_an_epoch_continues_to_the_same_weights_and_the_same_choice(finished, tmp_path):
    original, steps = Trainer._step, []

    def stop_at_the_eighth(self, batch):
        if len(steps) == 8:
            raise KeyboardInterrupt
        steps.append(1)
        return original(self, batch)

    Trainer._step = stop_at_the_eighth
    try:
        with pytest.raises(KeyboardInterrupt):
            train(fast_cfg(tmp_path))
    finally:
        Trainer._step = original
    train(fast_cfg(tmp_path), resume=True)
    folder = next(tmp_path.glob("*/*"))
    for name in ("latest.pth", "best.pth", "student_best.pth"):
        assert_same_weights(folder, finished, name)
    pairs = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
             for one in (folder, finished)]
    for mine, theirs in zip(*pairs, strict=True):
        assert {k: v for k, v in mine.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }


def test_a_run_is_done_when_its_best_student_is_written_for_other_programs(finished, tmp_path, monkeypatch):
    """A full disk or a kill just before left a run that was done, whose `pretrained` no sweep would write."""
    folder = tmp_path / finished.parent.name / finished.name
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("pretrained"))
    (folder / "summary.json").write_text((folder / "summary.json").read_text().replace('"done"', '"running"'))
    (folder / ".pretrained.a1b2c3d4").mkdir()

    def full(self, network, place):
        raise RunError(f"{place}/pretrained: cannot be written: No space left on device")

    with monkeypatch.context() as at_first, pytest.raises(RunError):
        at_first.setattr(Language, "publish", full)
        train(fast_cfg(tmp_path), resume=True)
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    train(fast_cfg(tmp_path), resume=True)
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"
    assert (folder / "pretrained" / "config.json").is_file() and not (folder / ".pretrained.a1b2c3d4").exists()
    assert_same_weights(folder, finished, "latest.pth")


def test_two_processes_train_and_choose_as_one(finished, tmp_path):
    """With torchrun: the ranks' answers have different numbers of tokens, and the same updates as in one process."""
    opts = [*map(str, FAST), "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "two"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           "tools/train.py", "--cfg", "configs/words/ea_fkl/tiny.yaml", *opts], cwd=REPOSITORY,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = finished, tmp_path / "distill" / "two"
    one, two = (torch.load(folder / "student_latest.pth", weights_only=True)["model"] for folder in folders)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-4, rtol=1e-4, msg=key)
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    assert two["best_epoch"] == one["best_epoch"]
    for key in ("last_accuracy", "last_loss", "last_rouge_l"):
        assert two[key] == pytest.approx(one[key], rel=1e-3), key


def test_the_best_student_loads_in_transformers_with_identical_logits(finished):
    transformers = pytest.importorskip("transformers")
    cfg = load_cfg(finished / "config.yaml")
    ours = build_language_model("tiny_1x32", 60)
    ours.load_state_dict(torch.load(finished / "student_best.pth", weights_only=True)["model"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished / "pretrained").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "pretrained")
    ids = torch.tensor([tokenizer("reverse apple sea door :")["input_ids"]])
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        expected = theirs(ids).logits[0]
        found = ours.head(ours.eval()(Tokens(ids, torch.ones_like(ids), places, places[0])))
    assert cfg.DISTILLER.STUDENT == "tiny_1x32" and ids.shape[1] == 5
    assert torch.equal(found, expected)


def test_only_the_format_of_transformers_is_exported(finished, tmp_path):
    with pytest.raises(UserError, match="--formats: onnx cannot hold a network for words; expected one of safetensors"):
        export_run(finished, formats=["safetensors", "onnx"], output=tmp_path)
    assert not list(tmp_path.iterdir())
    for formats in (None, ["safetensors"]):
        written = export_run(finished, formats=formats, output=tmp_path)
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in written}


def test_answers_of_a_run_are_written_scored_and_kept_when_asked_again(finished, tmp_path):
    lines = [{"prompt": "reverse apple sea door :", "output": "door sea apple"}] * 3
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["tools/answers.py", "--run", finished, "--seeds", 10, 20, "--ngram", 0, "--sets", tmp_path / "made.jsonl"]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    assert "made, free: Rouge-L" in first.stdout and "2 decoding seeds" in first.stdout
    kept = finished / "answers" / "best" / "made_free_seed10.jsonl"
    before, scores = kept.read_bytes(), json.loads((kept.parent / "scores.json").read_text())
    assert scores["made"]["free"]["examples"] == 3
    again = command(*words).stdout.splitlines()  # all answers are stored: none is announced
    assert again == [line for line in first.stdout.splitlines() if not line.endswith("0 of 3 answers are stored")]
    assert kept.read_bytes() == before
    copied = command(*words, "--checkpoint", "copy")
    assert "exact 0.00" in copied.stdout and "decoding seeds" not in copied.stdout  # a copy is the same for each


@pytest.mark.parametrize(("words", "kept", "verb"), [((), [0, 2], "left out"),
                                                     (("LM.LONG_PROMPTS", "cut"), [0, 1, 2], "cut")])
def test_long_prompts_are_left_out_of_answers_or_cut_as_in_training(words, kept, verb, finished, tmp_path, monkeypatch):
    lines = [{"prompt": f"{task} {'sun ' * number}moon :", "output": "moon"}
             for task, number in (("last", 2), ("repeat", 20), ("last", 3))]
    name = f"long_{len(kept)}"
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = []
    monkeypatch.setattr(instructions.log, "info", lambda text, *values: said.append(text % values))
    evaluate_answers(finished, {name: tmp_path / "long.jsonl"}, [10], 0, "latest", None, words)
    (file,) = (finished / "answers" / "latest").glob(f"{name}_*.jsonl")
    answered = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
    assert answered == [lines[number]["prompt"] for number in kept]
    assert said == [f"{name}: 1 of 3 prompts have more than 16 tokens and are {verb} (LM.MAX_PROMPT, LM.LONG_PROMPTS)",
                    f"{file}: 0 of {len(kept)} answers are stored"]


def test_answers_with_other_settings_or_weights_are_not_mixed_with_those_that_are_there(finished, tmp_path):
    (tmp_path / "other.jsonl").write_text(2 * (json.dumps({"prompt": "last sea apple :", "output": "apple"}) + "\n"))
    words = finished, {"other": tmp_path / "other.jsonl"}, [10], 0, "latest", 1
    evaluate_answers(*words)
    kept = finished / "answers" / "latest" / "other_free_seed10.jsonl"
    before = kept.read_bytes()
    assert before.count(b"\n") == 1  # of two examples, for the limit
    for opts in (["GENERATION.TEMPERATURE", 0.5], ["LM.MAX_PROMPT", 15], ["LM.MAX_LENGTH", 31], ["SOLVER.AMP", "bf16"]):
        with pytest.raises(UserError, match="other_free_seed10.jsonl: these answers were generated with other weights"):
            evaluate_answers(*words, opts)
    (finished / "answers" / "latest").rename(finished / "answers" / "start")  # as if training had gone on
    with pytest.raises(UserError, match="other weights or other settings"):
        evaluate_answers(*words[:4], "start")
    assert (finished / "answers" / "start" / kept.name).read_bytes() == before
    shutil.rmtree(finished / "answers" / "start")


def test_answers_are_made_as_the_command_says(finished, tmp_path, monkeypatch):
    (tmp_path / "ruled.jsonl").write_text(3 * '{"prompt": "last sea apple :", "output": "apple"}\n')
    words, asked = (finished, {"ruled": tmp_path / "ruled.jsonl"}, [10, 20], 2, "start", None), []

    def generate(network, prompts, keys, end, decoding, seed, device):
        asked.append((seed, *keys, decoding.no_repeat_ngram, network.training, torch.is_autocast_enabled("cpu")))
        return [[] for _ in prompts]

    monkeypatch.setattr("mdistiller.tasks.language.generate", generate)
    for rule in (5, 0):  # of the epochs' answers
        opts = ["GENERATION.BATCH_SIZE", 2, "SOLVER.AMP", "bf16", "GENERATION.NO_REPEAT_NGRAM", rule]
        evaluate_answers(*words, opts)
    assert asked == [(seed, *keys, 2, False, True) for seed in (10, 20) for keys in ([0, 1], [2])]
    assert (finished / "answers" / "start" / "ruled_ngram2_seed20.jsonl").exists()
    shutil.rmtree(finished / "answers" / "start")


def test_the_page_shows_answers_of_teacher_and_student_before_and_after(finished, tmp_path):
    line = {"prompt": "reverse apple sea door :", "output": "door sea apple"}
    (tmp_path / "pages.jsonl").write_text(json.dumps(line) + "\n")
    for checkpoint in ("teacher", "start", "best"):
        evaluate_answers(finished, {"pages": tmp_path / "pages.jsonl"}, [10], 0, checkpoint)
    said = {who: json.loads((finished / "answers" / who / "pages_free_seed10.jsonl").read_text())["answer"]
            for who in ("teacher", "start", "best")}
    assert said["start"] != said["teacher"] == "door sea apple"
    for other in (finished / "answers").glob("*/made_*"):  # from the test above: the page shows one file
        other.unlink()
    page = report(finished)
    for who, words in (("teacher", "teacher"), ("start", "student before training"), ("best", "student, best epoch")):
        shown = re.search(rf'<th scope="row">{words} \(Rouge-L \d+\)</th><td>(.*?)</td>', page)[1]
        assert html.unescape(shown) == said[who]
    assert '<th scope="row">reference</th><td>door sea apple</td>' in page and "reverse apple sea door :" in page


def test_a_student_cut_from_its_teacher_keeps_every_second_layer(monkeypatch):
    said = []
    monkeypatch.setattr(language.log, "info", lambda text, *words: said.append(text % words))
    teacher = build_language_model("tiny_4x32", 60)
    student = keep_layers(teacher.inner, 2)
    assert said == ["LM.EVERY_LAYER 2: the student keeps 2 of 4 layers of its network"]
    assert student.config.num_hidden_layers == 2
    for number, kept in enumerate((0, 2)):
        mine, theirs = student.transformer.h[number].state_dict(), teacher.inner.transformer.h[kept].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert torch.equal(student.transformer.wte.weight, teacher.inner.transformer.wte.weight)


@pytest.mark.parametrize("method", ["sft", "fkl", "ea_fkl"])
def test_the_configs_for_ones_own_models_use_whole_models_and_all_examples(method):
    found, default = (flatten(load_cfg(*path)) for path in ([f"configs/instructions/{method}/own.yaml"], []))
    changed = {key for key, value in found.items() if value != default[key] and key.startswith(("LM.", "GENERATION."))}
    assert changed == {"LM.TRAIN_FILE", "LM.VAL_FILE", "LM.TEST_FILE", "LM.LOSS_CHUNK",
                       "LM.DROP_LAST"}
    assert found["SOLVER.MAX_ITER"] == found["SOLVER.EVAL_PERIOD"] == 0 and found["SOLVER.EPOCHS"] == 3


def errors(tmp_path):
    empty, broken, long = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl", tmp_path / "long.jsonl"
    (tmp_path / "no_prompt.jsonl").write_text(
        '{"instruction": "sun", "output": "moon"}\n\n{"prompt": "", "output": "moon"}\n')
    (tmp_path / "blank.jsonl").write_text('{"prompt": " \\n", "output": "moon"}\n')
    empty.write_text('{"instruction": "sun", "output": "moon"}\n{"instruction": "sun", "output": " "}\n')
    broken.write_text('{"instruction": "sun"\n')
    long.write_text(json.dumps({"instruction": "sun " * 90, "output": "moon"}) + "\n")
    (tmp_path / "whole.jsonl").write_text(json.dumps({"prompt": "sun " * 90, "output": "moon"}) + "\n")
    small, short = tmp_path / "tokenizer", tmp_path / "short"
    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=60, n_positions=32, n_embd=16, n_layer=1, n_head=1)).save_pretrained(short)
    word_tokenizer(["sun", "moon"]).save_pretrained(small)
    files = ["DATASET.TYPE", "instructions", "DATASET.ROOT", str(tmp_path), "LM.TOKENIZER", str(small),
             "SOLVER.BATCH_SIZE", 1, "DATASET.VAL_FRACTION", 0.0, "DATASET.TRAIN_FRACTION", 1.0]

    def using(file):
        return [*files, "LM.TRAIN_FILE", file, "LM.TEST_FILE", file]

    return {
        "no file": (using("none.jsonl"), "none.jsonl: cannot be read: No such file"),
        "no name": (files, "LM.TRAIN_FILE: expected a JSON Lines file"),
        "empty answer": (using("empty.jsonl"), "empty.jsonl:2: output: expected an answer, found an empty text"),
        "no prompt": ([*using("no_prompt.jsonl"), "LM.MAX_LENGTH", 100, "LM.MAX_PROMPT", 60],
                      "no_prompt.jsonl:3: prompt: expected at least one token, found ''"),
        "a prompt of no words": (using("blank.jsonl"), "blank.jsonl:1: prompt: expected at least one token, found ' "),
        "no JSON": (using("broken.jsonl"), "broken.jsonl:1: expected an object with instruction, input and output"),
        "only long prompts": (using("long.jsonl"), "LM.MAX_PROMPT: all prompts of train have more than 16 tokens"),
        "no room for an answer": ([*using("long.jsonl"), "LM.MAX_LENGTH", 3],
                                  "LM.MAX_LENGTH: all prompts of train have more than 2 tokens"),
        "no tokenizer": ([*using("x"), "LM.TOKENIZER", str(tmp_path / "nothing")], "LM.TOKENIZER: no tokenizer"),
        "no model": (["DISTILLER.STUDENT", str(tmp_path / "nothing")], "DISTILLER.STUDENT: no language model"),
        "no GGUF": (["DISTILLER.STUDENT", "nothing.gguf"], "no such GGUF file: nothing.gguf"),
        "a student of few positions": (
            [*using("whole.jsonl"), "LM.MAX_PROMPT", 80, "LM.MAX_LENGTH", 100, "LM.LONG_PROMPTS", "cut"],
            "LM.MAX_LENGTH: a text of 81 tokens is longer than the 64 positions of DISTILLER.STUDENT tiny_1x32; "
            "expected at most 64"),
        "a teacher of few positions": (
            [*using("whole.jsonl"), "LM.MAX_PROMPT", 40, "LM.MAX_LENGTH", 100, "LM.LONG_PROMPTS", "cut",
             "DISTILLER.TEACHER", str(short), "DISTILLER.TEACHER_CHECKPOINT", "pretrained"],
            f"LM.MAX_LENGTH: a text of 41 tokens is longer than the 32 positions of DISTILLER.TEACHER {short}"),
        "an image method": (["DISTILLER.TYPE", "MLD"], "MLD needs a second view of each image, which language"),
        "no level": (["EA.LEVEL", "sentence"], "EA.LEVEL: expected one of sample, group"),
        "no rate": (["FKL.KD_RATE", 1.5], "FKL.KD_RATE: expected a number at least 0 and at most 1; found 1.5"),
    }


def test_wrong_settings_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, (opts, words) in errors(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            run = build_run(fast_cfg(tmp_path, "ea_fkl", *opts), torch.device("cpu"))
            next(run.data.train_batches(1, views=run.distiller.views))
        message = str(caught.value)
        assert isinstance(caught.value, UserError), (name, message)
        assert words in message and "\n" not in message, (name, message)


def test_another_vocabulary_of_teacher_or_tokenizer_is_refused_in_one_line(tmp_path):
    network = build_language_model("tiny_1x32", 70)
    network.inner.save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match="must have the same vocabulary; found student 60, teacher 70"):
        opts = ["DISTILLER.TEACHER", str(tmp_path / "larger"), "DISTILLER.TEACHER_CHECKPOINT", "pretrained"]
        build_run(fast_cfg(tmp_path, "ea_fkl", *opts), torch.device("cpu"))
    network = build_language_model("tiny_1x32", 50)
    network.inner.save_pretrained(tmp_path / "smaller")
    with pytest.raises(UserError, match="has a vocabulary of 50; expected that of the tokenizer, 60"):
        build_run(fast_cfg(tmp_path, "sft", "DISTILLER.STUDENT", str(tmp_path / "smaller")), torch.device("cpu"))


def test_a_missing_library_gives_one_line_that_names_the_extra(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("transformers"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs transformers: pip install 'mdistiller-ea\[llm\]'"):
        build_run(fast_cfg(tmp_path), torch.device("cpu"))


def test_long_prompts_are_left_out_and_counted_or_cut_where_asked(tmp_path, monkeypatch):
    lines = [{"instruction": "sun", "output": "moon"}, {"instruction": "sun " * 90, "output": "moon"}]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    word_tokenizer(["sun", "moon"]).save_pretrained(tmp_path / "tokenizer")
    opts = ["DATASET.TYPE", "instructions", "DATASET.ROOT", str(tmp_path), "LM.TOKENIZER", str(tmp_path / "tokenizer"),
            "LM.TRAIN_FILE", "set.jsonl", "LM.TEST_FILE", "set.jsonl", "LM.MAX_PROMPT", 60, "LM.MAX_LENGTH", 100,
            "SOLVER.BATCH_SIZE", 1, "DATASET.VAL_FRACTION", 0.0, "DATASET.TRAIN_FRACTION", 1.0]
    said = []
    monkeypatch.setattr(instructions.log, "info", lambda text, *words: said.append(text % words))
    data = build_data(fast_cfg(tmp_path, "sft", *opts), "cpu")
    assert data.info.num_train == len(data.samples["test"]) == 1
    assert said[0].startswith("train: 1 of 2 prompts have more than 60 tokens and are left out")
    data = build_data(fast_cfg(tmp_path, "sft", *opts, "LM.LONG_PROMPTS", "cut"), "cpu")
    assert data.info.num_train == 2 and len(data.samples["train"][1].prompt) == 60
    data = build_data(fast_cfg(tmp_path, "sft", *opts, "LM.MAX_LENGTH", 60), "cpu")  # of these, one is for the answer
    assert data.info.num_train == 1
    assert said[-1] == "test: 1 of 2 prompts have more than 59 tokens and are left out (LM.MAX_LENGTH, LM.LONG_PROMPTS)"
    opts += ["LM.MAX_LENGTH", 60, "LM.LONG_PROMPTS", "cut", "LM.PADDING", "fixed"]
    data = build_data(fast_cfg(tmp_path, "sft", *opts), "cpu")
    assert [len(sample.answer) for sample in data.samples["train"]] == [2, 1]  # with the end-of-text token, and cut
    assert data.batch("train", np.arange(2))["ids"].shape == (2, 60)


@pytest.mark.parametrize("name", ["KD", "RKLD", "SKLD", "SRKLD", "EA-KD"])
def test_the_names_of_the_papers_tables_are_divergences_for_language_models_alone(name):
    found = load_cfg("configs/words/base.yaml", ["DISTILLER.TYPE", name]).DISTILLER.TYPE
    expected = {"KD": "FKL", "RKLD": "RKL", "SKLD": "SKL", "SRKLD": "SRKL", "EA-KD": "EA-FKL"}
    assert found == expected[name]
    if name == "KD":
        assert load_cfg("configs/digits/kd/res20_res8.yaml").DISTILLER.TYPE == "KD"


def test_the_figure_of_weights_is_measured_and_drawn(finished, tmp_path):
    pytest.importorskip("matplotlib")
    from mdistiller.report.figures import draw

    (run,) = find_runs(finished.parent)
    content = token_weights({"EA-FKL": [run]}, measure.Options())
    rows = {(row["student"], row["temperature"], row["level"]): row for row in content["spread"]}
    arrays, sequences = content["weights"], 256
    assert len(rows) == 18 and rows["own", 2.0, "sequence"]["number"] == sequences
    tokens = arrays["EA-FKL, own|2|token"]
    assert rows["own", 2.0, "token"]["mean"] == pytest.approx(tokens.mean(), rel=1e-5)
    assert rows["own", 3.0, "token"]["percent"] < rows["own", 1.0, "token"]["percent"]
    # with a student of greatest entropy w is the teacher's entropy, so that both means over a sequence are the same
    np.testing.assert_allclose(arrays["EA-FKL, uniform|1|sequence"], arrays["EA-FKL, uniform|1|mean_weight"], rtol=1e-5)
    files.write(tmp_path, "weights", content, {})
    assert [path.suffix for path in draw("weights", tmp_path, tmp_path)] == [".png", ".pdf"]
    with pytest.raises(UserError, match="trained for language; expected a run for classification"):
        write_samples(finished, 4)


def test_a_run_without_the_library_of_its_metrics_ends_before_it_makes_a_folder(tmp_path, monkeypatch):
    rouge.scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"needs rouge-score: pip install 'mdistiller-ea\[llm\]'"):
        train(fast_cfg(tmp_path))
    assert not any(tmp_path.iterdir())
