"""Cells, sentences and tables with statistics."""

from mdistiller.report.ranks import rank_blocks
from mdistiller.report.significance import count_words, gain_cells, resampled_row
from mdistiller.runs.fill import fill
from mdistiller.runs.paper import load_tables
from mdistiller.runs.records import find_runs
from mdistiller.runs.statistics import paired_gain
from tests.report.support import PAIR, make_run
from tools import tables


def gain_of(*differences):
    return paired_gain(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))


def test_gains_of_a_table_are_corrected_and_pooled_together():
    cells = gain_cells([gain_of(1, 2, 3), None, gain_of(1, 1, 4), gain_of(7)])
    # p of (1, 2, 3) is 0.0742 (t = 2 sqrt(3)), of (1, 1, 4) 0.1835 (t = 2); Holm: 2 * 0.0742, then 0.1835
    assert cells[0] == ("+2.00", "-0.48 to +4.48", "-0.27 to +4.27", "0.074", "0.148")
    assert cells[2][3:] == ("0.184", "0.184") and cells[1] == ("",) * 5
    # squares 2 and 6 over 2 + 2 degrees: deviation sqrt(2), t(4, 0.975) = 2.7764; over one seed 7 +- 3.93
    assert cells[3] == ("+7.00", "", "+3.07 to +10.93", "", "")
    assert gain_cells([gain_of(1, 2, 3), gain_of(7)])[1][2] == ""  # too few degrees of freedom to pool


def test_a_row_that_varies_more_than_the_others_is_not_pooled():
    calm = [gain_of(1, 2, 3), gain_of(4, 5, 6), gain_of(7, 8, 9)]
    cells = gain_cells([*calm, gain_of(-10, 0, 10)])
    assert cells[3][1:3] == ("-24.84 to +24.84", "")
    assert [row[2] for row in cells[:3]] == [row[2] for row in gain_cells(calm)]


def test_fewer_than_five_seeds_are_not_resampled():
    assert resampled_row(("a", "b"), gain_of(1, 2, 3, 4), 1.0) is None
    assert resampled_row(("a", "b"), gain_of(1, 2, 3, 4, 5), 1.0)[5:] == ("0.0625", "1.00")


def test_more_than_twenty_seeds_are_shown_without_the_exact_test():
    assert resampled_row(("a", "b"), gain_of(*range(1, 22)), 1.0)[2:6:3] == ("21", "")


def test_the_count_of_tests_says_what_a_correction_keeps():
    assert count_words([0.001, 0.04, 0.5, float("nan")]) == (
        "Tests of all tables together: 3; with p at most 0.05: 2; kept by Holm's correction over all of them: 1.")
    assert "enough seeds" in count_words([])


def test_methods_are_ranked_over_the_pairs_that_have_them_all(tmp_path):
    assert "expected runs of two methods" in rank_blocks([fill(load_tables()["2"], find_runs(tmp_path))])[1].text
    for column, kd, ea_kd in ((PAIR, 73.0, 75.0), ("vgg13_vgg8", 72.0, 73.0), ("vgg13_mv2", 67.0, None)):
        make_run(tmp_path, "KD", 0, kd, column=column)
        if ea_kd:
            make_run(tmp_path, "EA-KD", 0, ea_kd, column=column)
    make_run(tmp_path, "KD", 0, 60.0, column="vgg13_mv2", SOLVER__EPOCHS=2)
    (heading, words) = rank_blocks([fill(load_tables()["2"], find_runs(tmp_path))])[:2]
    assert "expected runs of two methods" in words.text  # KD alone has runs of three pairs
    make_run(tmp_path, "EA-KD", 0, 68.0, column="vgg13_mv2")
    blocks = rank_blocks([fill(load_tables()["2"], find_runs(tmp_path))])
    assert blocks[2].rows == (("EA-KD", "1.00"), ("KD", "2.00")) and "over 3 blocks" in blocks[1].text


def test_within_a_pair_only_cells_of_its_most_frequent_protocol_are_ranked(tmp_path):
    for column, epochs in ((PAIR, 2), ("vgg13_vgg8", 240)):
        make_run(tmp_path, "KD", 0, 99.0, column=column, SOLVER__EPOCHS=epochs)
        make_run(tmp_path, "EA-KD", 0, 75.0, column=column)
        make_run(tmp_path, "DKD", 0, 76.0, column=column)
    *_, grid, left_out = rank_blocks([fill(load_tables()["2"], find_runs(tmp_path))])
    assert grid.rows == (("DKD", "1.00"), ("EA-KD", "2.00"))
    assert left_out.text.startswith("Left out, for runs are missing: methods KD; pairs table 2, ")


def test_the_command_says_how_many_seeds_are_needed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tables.py", "--power", "0.3", "--deviation", "0.3"])
    tables.main()
    assert capsys.readouterr().out.splitlines()[-1].split("|")[1:3] == [f" {'0.3':<28} ", f" {'10':<10} "]
