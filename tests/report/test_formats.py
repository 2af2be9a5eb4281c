"""A small table in each format, exactly as text; and the command that prints it."""

import csv
import io
import re
from dataclasses import replace

import pytest

from mdistiller import markdown
from mdistiller.report import formats
from mdistiller.report.compare import comparison
from mdistiller.report.layout import _letter, layout, missing, overview
from mdistiller.runs.fill import fill
from mdistiller.runs.paper import load_tables
from mdistiller.runs.records import find_runs
from tests.forked import run_tool
from tests.report.support import PAIR, REPOSITORY, make_run, make_runs

COMMAND = "python tools/sweep.py --table 1"
OVERVIEW = """\
|                    | res32x4_res8x4   |
|--------------------|------------------|
| KD                 | 73.17 ± 0.76     |
| KD, w = H^T        | **75.17 ± 0.29** |
| KD, w = H^S        | 74.50 (a)        |
| KD, w = H_ub - H^T | missing          |
| KD, w = H_ub - H^S | missing          |

- (a) 2 epochs, 1 view, batches of 64; not the paper's: SOLVER.EPOCHS 2 (not 240)
"""
DETAILS = """\
|                    | runs | last         | best         | paper | diff. | gain [95 % interval]                     | paper's gain |
|--------------------|------|--------------|--------------|-------|-------|------------------------------------------|--------------|
| KD                 | 3    | 73.17 ± 0.76 | 73.17 ± 0.76 | 73.33 | -0.16 |                                          |              |
| KD, w = H^T        | 3    | 75.17 ± 0.29 | 75.17 ± 0.29 | 75.14 | +0.03 | +2.00 [-0.48, 4.48] p=0.074 (Holm=0.074) | +1.81        |
| KD, w = H^S (a)    | 1    | 74.50        | 74.50        | 74.76 | –     |                                          | +1.43        |
| KD, w = H_ub - H^T | 0    | missing      |              | 72.73 |       |                                          | -0.60        |
| KD, w = H_ub - H^S | 0    | missing      |              | 68.90 |       |                                          | -4.43        |
"""  # noqa: E501
CHECK = """\
|             |                | here  | paper | diff. | 2 sd | verdict |
|-------------|----------------|-------|-------|-------|------|---------|
| KD          | res32x4_res8x4 | 73.17 | 73.33 | -0.16 | 1.53 | within  |
| KD, w = H^T | res32x4_res8x4 | 75.17 | 75.14 | +0.03 | 0.58 | within  |

2 within, 1 of another protocol; 2 missing."""
LATEX = r"""
\begin{tabular}{lc}
\toprule
 & res32x4\_res8x4 \\
\midrule
KD & 73.17 $\pm$ 0.76 \\
KD, w = H\^{}T & \textbf{75.17 $\pm$ 0.29} \\
KD, w = H\^{}S & 74.50 (a) \\
KD, w = H\_ub - H\^{}T & missing \\
KD, w = H\_ub - H\^{}S & missing \\
\bottomrule
\end{tabular}
"""


@pytest.fixture
def runs(tmp_path):
    """Of Table 1: three seeds of two rows, one seed of another protocol of a third."""
    make_runs(tmp_path, "KD", [73.0, 74.0, 72.5], table="1")
    make_runs(tmp_path, "KD, w = H^T", [75.0, 75.0, 75.5], table="1")
    make_run(tmp_path, "KD, w = H^S", 0, 74.5, table="1", SOLVER__EPOCHS=2)
    return tmp_path


@pytest.fixture
def blocks(runs):
    return layout(fill(load_tables()["1"], find_runs(runs)), COMMAND, check=True)


def test_markdown(blocks):
    text = formats.markdown(blocks)
    assert OVERVIEW in text and DETAILS in text and CHECK in text
    assert "Headline: **last epoch**." in text
    assert f"    {COMMAND} --methods 'KD, w = H_ub - H^S' --pairs res32x4_res8x4\n" in text


def test_latex(blocks):
    text = formats.latex(blocks)
    assert LATEX in text
    assert r"\caption{Entropy-based reweighting on KD (CIFAR-100): top-1 in percent, last epoch}" in text
    outside = [line for line in text.split("\n") if line and not line.startswith("%")]
    assert not {"_", "^", "±"} & set("".join(outside).replace(r"\_", "").replace(r"\^{}", ""))


def test_csv(runs):
    text = formats.csv_text([(fill(load_tables()["1"], find_runs(runs)), COMMAND)])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["status"] for row in rows] == ["done", "done", "done", "missing", "missing"]
    expected = {"row": "KD, w = H^T", "seeds": "0 1 2", "last_mean": "75.1667", "last_std": "0.288675",
                "paper": "75.14", "within_2sd": "true", "gain": "2", "gain_p": "0.0741799",
                "gain_p_holm": "0.0741799", "gain_across_protocols": "false"}
    assert {key: rows[1][key] for key in expected} == expected
    assert rows[2]["not_as_in_paper"] == "SOLVER.EPOCHS 2 (not 240)" and rows[2]["difference"] == rows[2]["gain"] == ""
    assert rows[3]["last_mean"] == "" and rows[3]["command"].startswith(COMMAND) and rows[1]["command"] == ""


def test_a_gain_across_protocols_is_marked_in_tables_and_csv(tmp_path):
    for seed, (baseline, variant) in enumerate([(78.0, 78.5), (79.0, 80.5)]):
        make_run(tmp_path, "MLD", seed, baseline)
        make_run(tmp_path, "EA-MLD", seed, variant, best=81.0)  # of 480 epochs, not 240
    make_run(tmp_path, "EA-MLD", 2, 77.0, metadata={"teacher_top1": 79.5}, best=84.0)
    make_run(tmp_path, "KD", 0, 73.0)
    make_run(tmp_path, "EA-KD", 0, 75.0, status="running")
    table = fill(load_tables()["2"], find_runs(tmp_path))
    text = " ".join(formats.markdown(layout(table, COMMAND)).split())
    # differences 0.5 and 1.5: error 0.5, t(1, 0.975) = 12.7062; p = 1 - 2 atan(2) / pi
    assert "+1.00 [-5.35, 7.35] p=0.295 (Holm=0.295) (2 seeds) *" in text and text.count("were trained with diff") == 2
    assert re.search(r"\| EA-MLD +\| \+1\.00 \* +\| 1 of 7 ", text) and "not finished and left out: 1 run in" in text
    assert "teacher resnet32x4 (79.42 in the paper; here 79.42, 79.5)" in text
    rows = {(row["row"], row["column"]): row for row in csv.DictReader(io.StringIO(formats.csv_text([(table, "")])))}
    expected = {"seeds": "0 1 2", "gain": "1", "gain_seeds": "2", "gain_low": "-5.3531", "gain_high": "7.3531",
                "gain_across_protocols": "true", "best_mean": "82", "best_std": "1.73205"}
    assert {key: rows["EA-MLD", PAIR][key] for key in expected} == expected


def test_html_holds_the_same_and_loads_nothing(blocks):
    page = formats.html_page(blocks, "Table <1>")
    assert "<td><b>75.17 ± 0.29</b></td>" in page and "+2.00 [-0.48, 4.48] p=0.074 (Holm=0.074)" in page
    assert "<title>Table &lt;1&gt;</title>" in page
    assert "http" not in page and "src=" not in page and "<script" not in page


def test_cells_with_fewer_seeds_than_the_paper_are_named_with_their_commands(runs):
    filled = fill(load_tables()["1"], find_runs(runs))
    *_, heading, commands = missing(replace(filled, table=replace(filled.table, runs=3)), COMMAND)
    assert heading.text == "Fewer than 3 seeds: 1 cell"
    assert commands.lines == (f"{COMMAND} --methods 'KD, w = H^S' --pairs {PAIR}",)


def test_every_protocol_has_a_letter_of_its_own():
    assert [_letter(number) for number in (0, 25, 26, 27, 701)] == ["a", "z", "aa", "ab", "zz"]


def test_wide_tables_are_split_for_terminals():
    table = fill(load_tables()["2"], [])
    grids = overview(table, {cell.protocol_text: "" for cell in table.cells.values()}, 4)
    assert [len(grid.header) for grid in grids] == [5, 4]
    text = formats.markdown(layout(table, COMMAND))
    assert max(map(len, text.splitlines())) <= 120


def test_the_average_gains_of_the_paper_are_shown_with_what_its_cells_give():
    text = formats.markdown(layout(fill(load_tables()["2"], []), COMMAND))
    assert "+1.48 (its cells give +1.49)" in text
    assert "| overall                        | –    | 0 of 49 | +0.56 " in text


@pytest.mark.parametrize(("name", "words"), [
    ("3", "Inferred, because neither the paper nor public code says it: all training settings,"),
    ("4", "EA-KD, r34_r18: the gain is not of the weights alone: KD.LOSS.CE_WEIGHT 1.0 (baseline 0.5)"),
    ("9", "ea, MLD+LS: the gain is not of the weights alone: KD.LOSS.KD_WEIGHT 4.0 (baseline 9.0)"),
    ("2", "EA-MLD, vgg13_vgg8: the gain is not of the weights alone: SOLVER.EPOCHS 480 (baseline 240), SOLVER.LR 0.01"),
])
def test_a_table_says_what_was_inferred_and_which_gains_are_not_of_the_weights_alone(name, words):
    text = " ".join(formats.markdown(layout(fill(load_tables()[name], []), COMMAND)).split())
    assert words in text and "EA-DKD, r34_r18: the gain" not in text


@pytest.mark.parametrize("name", [name for name, table in load_tables().items() if name not in ("7", "A3")])
def test_every_table_prints_without_runs(name):
    table = load_tables()[name]
    command = f"sweep --table {name} 'LOG.PREFIX={'a long folder/' * 10}'"
    text = formats.markdown(layout(fill(table, []), command, check=True))
    labels = (*table.columns.values(), *table.rows.values())
    accuracies = [said[key] for said in labels for key in ("teacher_acc", "student_acc") if key in said]
    printed = [value for cell in table.cells.values() for value in (cell.printed, cell.std) if value == value]
    numbers = {f"{value:.2f}" for value in (*printed, *accuracies) if value is not None}
    assert len(numbers) > 2 and all(re.search(rf"(?<!\d){number}(?!\d)", text) for number in numbers)
    assert all(f"| {gain:+.2f} " in text for gain in table.average_gain.values())
    assert f"Missing: {len(table.cells)} of {len(table.cells)} cells" in text
    metrics = 3 if name in ("6", "A2") else 1  # AP, AP50 and AP75 of one training
    assert text.count(f"    {command} --methods ") * metrics == len(table.cells)
    assert len(table.cells) == metrics or f"\n    {command}\n" in text  # no line break: it can be pasted


def test_the_command_prints_tables_and_reports_errors_in_one_line(runs):
    done = run_tool("tables", ["--table", "1", "--runs", runs, "--check"], REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "") and OVERVIEW in done.stdout and CHECK in done.stdout
    assert f"--table 1 LOG.PREFIX={runs} --methods 'KD, w = H_ub - H^S' --pairs {PAIR}\n" in done.stdout
    wrong = run_tool("tables", ["--table", "99"], REPOSITORY)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "unknown table" in wrong.stderr


def test_values_of_records_begin_no_html_in_running_text(tmp_path):
    value = "<img src=x onerror=alert(1)> a\n</p>"
    make_run(tmp_path, "KD", 0, 73.0, DATASET__AUGMENTATION=value)
    make_run(tmp_path, "KD", 0, 73.0, DATASET__AUGMENTATION=value, name="<b>")
    text = formats.markdown(layout(fill(load_tables()["2"], find_runs(tmp_path)), COMMAND))
    assert "DATASET.AUGMENTATION &lt;img src=x onerror=alert(1)> a &lt;/p>" in " ".join(text.split())
    assert re.search("<[a-z/]", text + comparison(tmp_path)) is None and "**last epoch**" in text


def test_the_one_writer_of_tables_aligns_and_escapes():
    rows = [("a|b\n<i>", "1"), ("c", "22222")]
    cells = [[markdown.cell(text) for text in row] for row in rows]
    assert markdown.table(("x", "y"), cells) == "| x | y |\n| --- | --- |\n| a\\|b &lt;i&gt; | 1 |\n| c | 22222 |"
    aligned = markdown.table(("x", "y"), [("c", "22222")], aligned=True)
    assert aligned == "| x   | y     |\n|-----|-------|\n| c   | 22222 |"
