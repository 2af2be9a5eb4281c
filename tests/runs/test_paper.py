"""The paper's tables as data, against the paper's own averages and against the runs."""

import math
from pathlib import Path

import pytest

from mdistiller.config.files import read_yaml
from mdistiller.runs.paper import load_runs, load_tables

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS, TABLES = load_runs(), load_tables()


def test_tables_that_the_project_covers_have_a_run_in_every_cell():
    covered = {name for name, table in TABLES.items() if any(cell.run for cell in table.cells.values())}
    assert covered == {"1", "2", "3", "4", "5", "6", "8", "9", "A1", "A2", "C4", "C5"}
    assert all(cell.run for name in covered for cell in TABLES[name].cells.values())
    cells = [cell for name in covered for cell in TABLES[name].cells.values()]
    controls = [cell for cell in cells if math.isnan(cell.printed)]
    assert (len(cells), len(controls)) == (276, 36) and {cell.table for cell in controls} == {"6", "A2"}


def test_every_run_fills_a_cell_of_its_table_with_the_number_it_prints():
    filled = set()
    for table in TABLES.values():
        for cell in table.cells.values():
            if cell.run and cell.run.table == cell.table and not math.isnan(cell.printed):
                if cell.metric in (None, "ap"):  # a run's number is its headline
                    assert cell.printed == cell.run.printed, cell
                filled.add(id(cell.run))
    assert filled == {id(run) for run in RUNS} and len(RUNS) == 162


def test_a_training_that_several_tables_print_is_one_training():
    known = {}
    for run in RUNS:
        assert known.setdefault((run.config, run.overrides), run).settings == run.settings, run
    assert len(known) == 162 - 8  # three of Table 8 and four of Table 9 are Table 2's, one of Table 9 is Table 1's
    assert TABLES["8"].cells["res32x4_res8x4", "3"].run.config == "configs/cifar100/ea_kd/res32x4_res8x4.yaml"
    for weight, epochs in (("none", 240), ("ea", 480)):
        run = TABLES["9"].cells["MLD", weight].run
        assert (run.settings["SOLVER.EPOCHS"], run.views) == (epochs, 2)


def gains(table, row):
    cells = [cell for cell in table.cells.values() if cell.row == row and cell.baseline]
    return [cell.printed - table.cells[cell.baseline].printed for cell in cells]


def test_the_average_gains_of_table_2_follow_from_its_cells_but_for_ea_kd_and_one_pair():
    table = TABLES["2"]
    each = {row: gains(table, row) for row in table.rows if row in table.average_gain}
    pairs = dict(zip(table.columns, zip(*each.values(), strict=True), strict=True))
    recomputed = {name: round(sum(values) / len(values), 2) for name, values in {**each, **pairs}.items()}
    everything = [gain for values in each.values() for gain in values]
    assert len(everything) == 49
    recomputed["overall"] = round(sum(everything) / 49, 2)
    assert recomputed == {**table.average_gain, "EA-KD": 1.49, "vgg13_vgg8": 0.32}  # 10.40 / 7 and 2.25 / 7
    assert (table.average_gain["EA-KD"], table.average_gain["vgg13_vgg8"]) == (1.48, 0.33)


def test_a_pair_of_rows_whose_difference_is_not_the_gain_that_the_paper_prints_has_a_note():
    table = TABLES["2"]
    for row, column, printed in (("EA-MLD+LS", "wrn28_4_wrn16_2", 0.39), ("EA-FCFD", "res32x4_shuv2", 0.56)):
        cell = table.cells[row, column]
        assert cell.printed - table.cells[cell.baseline].printed == pytest.approx(printed + 0.01)
        assert cell.note == f"Table 2 prints a gain of {printed:+.2f}"


def test_a_table_with_inferred_settings_says_so():
    provenance = read_yaml(REPOSITORY / "tests/config/provenance.yaml")
    uncertain = {name.split(":")[0] for name, said in provenance.items() if said.get("uncertain")}
    assert {name for name, table in TABLES.items() if table.inferred} >= uncertain


def test_tables_are_found_regardless_of_case_and_unknown_ones_are_named():
    assert TABLES["a1"] is TABLES["A1"]
    with pytest.raises(ValueError, match="unknown table '10'; nearest: "):
        TABLES["10"]
