"""Tables 7 and A3, and the page on language models."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from mdistiller.config import dump_cfg, load_cfg
from mdistiller.engine.setup import train
from mdistiller.errors import UserError
from mdistiller.report.formats import markdown
from mdistiller.report.language import language_blocks, language_csv
from mdistiller.runs.language import SPEC, rows, trainings
from mdistiller.runs.paper import load_tables
from mdistiller.runs.reading import read_answers
from mdistiller.runs.records import find_runs
from tests.engine.support import REPOSITORY, command
from tests.language.test_runs import fast_cfg


@pytest.mark.parametrize("table", ["7", "A3"])
def test_a_table_without_runs_shows_the_paper_the_copy_row_the_controls_and_the_commands(table, tmp_path):
    printed = command("tools/tables.py", "--table", table, "--runs", tmp_path)
    assert printed.returncode == 0, printed.stderr
    for words in ("copied input", "21.06", "44.14", "24.95", "missing", "Inferred", "EA-KD, constant",
                  "EA-KD, normalized", "KD, rate 0.9", "decoding",
                  f"python tools/sweep.py --table {table} LOG.PREFIX={tmp_path} --methods 'EA-KD'"):
        assert words in printed.stdout, words
    for cell in load_tables()[table].cells.values():  # the averages and the teacher included
        assert re.search(rf"\| {re.escape(cell.row)}, paper .*\| {cell.printed:.2f} ", printed.stdout), cell


def test_every_row_names_a_configuration_that_there_is_and_differs_from_the_others():
    found = {**trainings("7"), **trainings("A3")}
    assert all(training.path.is_file() for training in found.values())
    assert len({(training.config, training.overrides) for training in found.values()}) == len(found) == 12


def scored_run(folder, seed, method, score, sets=("dolly",), teacher=None, **changed):
    """A run folder with the configuration of a row of Table 7, without training; `teacher` is the teacher's score."""
    run = folder / f"{method}_{seed}"
    run.mkdir()
    cfg = load_cfg(f"configs/dolly/{method}/gpt2_xl_gpt2.yaml", ["EXPERIMENT.SEED", seed])
    (run / "config.yaml").write_text(dump_cfg(cfg))
    (run / "run.json").write_text(json.dumps({"overridden": {}}))
    (run / "summary.json").write_text(json.dumps(
        {"status": "done", "headline": "rouge_l", "last_rouge_l": score, "best_rouge_l": score, "seed": seed}))
    for who, mean in (("best", score), ("teacher", teacher)) if teacher else (("best", score),):
        scores = {name: {"ngram6": {
            "rouge_l": mean + place**2, "rouge_l_std": 0.2, "examples": SPEC["examples"][name],
            "seeds": [10, 20, 30, 40, 50]} | changed} for place, name in enumerate(sets)}
        (run / "answers" / who).mkdir(parents=True)
        (run / "answers" / who / "scores.json").write_text(json.dumps(scores))


def test_means_spreads_of_training_and_decoding_and_gains_stand_in_the_table(tmp_path):
    for method, scores in (("fkl", (24.0, 25.0)), ("ea_fkl", (26.0, 26.0))):
        for seed, score in enumerate(scores):
            scored_run(tmp_path, seed, method, score)
    text = command("tools/tables.py", "--table", "7", "--runs", tmp_path).stdout
    assert re.search(r"\| KD, here +\| 2 +\| 24.50 ± 0.71 / 0.20 ", text), text
    assert re.search(r"\| EA-KD, here +\| 2 +\| 26.00 ± 0.00 / 0.20 ", text)
    assert "EA-KD over KD: Dolly +1.50 (paper +0.41)" in text
    assert re.search(r"\| SFT \(GPT2-S\), here +\| missing", text)


def test_the_average_is_over_all_five_sets_and_the_teacher_has_a_row(tmp_path):
    scored_run(tmp_path, 0, "fkl", 20.0, sets=SPEC["examples"], teacher=30.0)
    scored_run(tmp_path, 1, "fkl", 22.0, sets=SPEC["examples"])
    scored_run(tmp_path, 0, "ea_fkl", 25.0, sets=("dolly", "vicuna"))
    table, found = load_tables()["7"], rows("7", find_runs(tmp_path))
    text = markdown(language_blocks(table, found, "x"))
    assert re.search(r"\| KD, here +\| 2 .*\| 27.00 ± 1.41 / – +\|\n", text), text  # 20, 21, 24, 29, 36: 26; and 2 more
    assert re.search(r"\| EA-KD, here +\| 1 +\| 25.00 ± .*\| missing +\|\n", text)
    assert re.search(r"\| Teacher \(GPT2-XL\), here +\| +\| 30.00 ± – / 0.20 .*\| 36.00 ± – / – +\|\n", text)
    lines = list(csv.DictReader(io.StringIO(language_csv([(table, found, "x")]))))
    cells = {(line["row"], line["column"]): line for line in lines}
    assert len(cells) == len(lines) == 66  # of six rows and five controls
    assert cells["KD", "Avg"]["mean"] == "27" and cells["KD", "Avg"]["paper"] == "17.63"
    assert (cells["KD", "Dolly"]["training_std"], cells["KD", "Dolly"]["decoding_std"]) == ("1.41421", "0.2")
    assert cells["EA-KD", "Dolly"]["gain"] == "4" and cells["EA-KD", "Avg"]["status"] == "missing"
    assert cells["Teacher (GPT2-XL)", "UnNI"]["mean"] == "46"


def test_a_trained_run_is_shown_with_the_command_that_answers_the_sets_its_row_still_needs(tmp_path):
    scored_run(tmp_path, 0, "fkl", 20.0, sets=SPEC["examples"])
    scored_run(tmp_path, 0, "ea_fkl", 25.0, sets=("dolly", "vicuna", "s_ni_11"))
    text = markdown(language_blocks(load_tables()["7"], rows("7", find_runs(tmp_path)), "x"))
    (line,) = [line.strip() for line in text.splitlines() if "tools/answers.py" in line]
    assert line == (f"python tools/answers.py --run {tmp_path}/ea_fkl_0 --sets self_inst=data/dolly/self_inst.jsonl "
                    "u_ni_11=data/dolly/u_ni_11.jsonl")


def test_a_partial_evaluation_is_in_no_cell_and_said_to_be_left_out(tmp_path):
    scored_run(tmp_path, 0, "fkl", 24.0)
    scored_run(tmp_path, 1, "fkl", 99.0, examples=10)
    scored_run(tmp_path, 2, "fkl", 99.0, seeds=[10])
    (row,) = [row for row in rows("7", find_runs(tmp_path)) if row.label == "KD"]
    assert len(row.runs) == 3 and row.scores["Dolly"].mean == 24.0 and row.scores["Dolly"].seeds == 1
    first, second = sorted(row.left_out)
    assert first.endswith("fkl_1, dolly: 10 examples and 5 decoding seeds, expected 500 and 5")
    assert second.endswith("fkl_2, dolly: 500 examples and 1 decoding seed, expected 500 and 5")
    blocks = language_blocks(load_tables()["7"], [row], "x")
    assert re.search(r"\| KD, here +\| 3 +\| 24.00 ± – / 0.20 \(1 seed\) ", markdown(blocks))
    (heading,) = [block for block in blocks if "Answers of an" in str(block)]
    assert "in no cell" in heading.text


@pytest.mark.parametrize("content", ["[]", '{"dolly": 3}', '{"dolly": {"ngram6": 3}}', '{"dolly": {"free": {}}}', "{"])
def test_scores_of_another_form_are_left_out(content, tmp_path):
    write_scores(tmp_path, content)
    assert not any(read_answers(tmp_path).get("best", {}).values())


@pytest.mark.parametrize("score", ['"x"', "null", "NaN", "1" + "0" * 400])
def test_scores_that_are_no_numbers_are_named(score, tmp_path):
    write_scores(tmp_path, f'{{"dolly": {{"ngram6": {{"rouge_l": {score}, "rouge_l_std": null}}}}}}')
    with pytest.raises(UserError, match="scores.json: dolly: expected numbers as rouge_l and rouge_l_std"):
        read_answers(tmp_path)


def write_scores(folder, content):
    (folder / "answers" / "best").mkdir(parents=True)
    (folder / "answers" / "best" / "scores.json").write_text(content)


def test_a_smoke_sweep_trains_a_row_and_the_table_finds_it(tmp_path):
    words = ["--table", "A3", "--smoke", f"LOG.PREFIX={tmp_path}"]
    done = command("tools/sweep.py", *words, "--methods", "EA-KD")
    assert done.returncode == 0, done.stderr
    printed = command("tools/tables.py", *words).stdout
    assert "A smoke run" in printed and re.search(r"\| EA-KD, here +\| 1 +\| \d+\.\d\d", printed), printed


def test_the_commands_of_the_page_are_there_and_its_first_ones_do_what_it_says(tmp_path):
    page = (REPOSITORY / "docs" / "language.md").read_text().replace("\\\n", " ")
    named = set(re.findall(r"(?:configs|scripts|tools)/[\w./]+\.(?:yaml|sh|py)", page))
    assert len(named) >= 6 and all((REPOSITORY / name).is_file() for name in named)
    lines = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    python")]
    train_words, answer_words = lines[:2]
    cfg = fast_cfg(tmp_path)
    assert train_words[-1] == "configs/words/ea_fkl/tiny.yaml"
    train(cfg)
    folder = tmp_path / Path(answer_words[answer_words.index("--run") + 1]).relative_to("output")
    assert folder.is_dir() and (folder / "pretrained" / "config.json").is_file()
    (tmp_path / "my_set.jsonl").write_text('{"prompt": "first sun moon :", "output": "sun"}\n')
    answer_words[answer_words.index("--run") + 1] = folder
    answer_words[-1] = tmp_path / "my_set.jsonl"
    done = command(*answer_words)
    assert done.returncode == 0 and "my_set, free: Rouge-L" in done.stdout, done.stderr
