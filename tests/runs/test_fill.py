"""The arithmetic of tables from synthetic run folders, compared with numbers computed by hand."""

import math

import pytest

from mdistiller.report.formats import markdown
from mdistiller.report.layout import gain_text, layout
from mdistiller.runs.fill import fill
from mdistiller.runs.paper import load_tables
from mdistiller.runs.records import find_runs
from mdistiller.runs.statistics import Gain, paired_gain
from tests.report.support import PAIR, make_run, make_runs


def filled(root, table="2", **said):
    return fill(load_tables()[table], find_runs(root), **said)


def cell(root, row, column=PAIR, **said):
    return filled(root, **said).cells[row, column]


def test_mean_and_deviation_over_seeds(tmp_path):
    make_runs(tmp_path, "KD", [73.0, 73.5, 74.6])
    kd = cell(tmp_path, "KD")
    # mean 73.7; deviations -0.7, -0.2, 0.9; squares 0.49 + 0.04 + 0.81 = 1.34, over n - 1 = 2: 0.67
    assert kd.mean_and_std("last") == pytest.approx((73.7, math.sqrt(0.67)))
    assert kd.difference("last") == pytest.approx(73.7 - 73.33)
    assert [run.seed for run in kd.runs] == [0, 1, 2]


def test_the_gain_is_paired_by_seed(tmp_path):
    make_runs(tmp_path, "KD", [73.0, 74.0, 72.5, 70.0])  # seed 3 has no partner
    make_runs(tmp_path, "EA-KD", [75.0, 75.0, 75.5])
    table = filled(tmp_path)
    gain = table.gain(table.cells["EA-KD", PAIR])
    # differences 2, 1, 3: mean 2, deviation 1, error 1 / sqrt(3); t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom;
    # there P(|t| > x) = 1 - x / sqrt(x^2 + 2) = 1 - 3.4641 / sqrt(14) = 0.07418, and the 97.5 % point is 4.30265
    assert (gain.mean, gain.seeds) == (pytest.approx(2.0), 3)
    assert (gain.low, gain.high) == (pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4),
                                     pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4))
    assert gain.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14), abs=1e-6)
    assert table.printed_gain(table.cells["EA-KD", PAIR]) == pytest.approx(75.46 - 73.33)
    assert gain_text(gain, 3) == "+2.00 [-0.48, 4.48] p=0.074"
    assert table.corrected_p["EA-KD", PAIR] == gain.p  # the only test in the table
    assert gain_text(gain, 3, 0.5) == "+2.00 [-0.48, 4.48] p=0.074 (Holm=0.500)"


@pytest.mark.parametrize(("variant", "baseline", "mean", "seeds", "text"), [
    ({0: 75.0}, {0: 73.0}, 2.0, 1, "+2.00"),  # one seed: no test
    ({0: 75.0, 1: 76.0}, {2: 73.0, 3: 74.0}, 2.0, 0, "+2.00 (no common seed)"),
    ({0: 75.0, 1: 76.0}, {0: 73.0, 1: 74.0}, 2.0, 2, "+2.00"),  # no deviation to test with
    ({0: 75.0, 1: 76.0}, {1: 75.5, 5: 70.0}, 0.5, 1, "+0.50 (1 seed)"),
])
def test_gains_without_a_test(variant, baseline, mean, seeds, text):
    gain = paired_gain(variant, baseline)
    assert gain == Gain(pytest.approx(mean), seeds, gain.low, gain.high, gain.p)
    assert math.isnan(gain.low) and math.isnan(gain.high) and math.isnan(gain.p)
    assert gain_text(gain, len(variant)) == text


def test_one_seed_alone_has_no_deviation_and_is_checked_with_the_papers(tmp_path):
    make_run(tmp_path, "EA-KD", 0, 75.20)
    make_run(tmp_path, "KD", 0, 73.33)
    ea_kd, kd = cell(tmp_path, "EA-KD"), cell(tmp_path, "KD")
    assert math.isnan(ea_kd.mean_and_std("last")[1]) and ea_kd.deviation("last") == 0.15
    assert ea_kd.within("last") is True  # 0.26 of 0.30
    assert kd.within("last") is None  # the paper prints no deviation of KD


@pytest.mark.parametrize(("values", "within"), [
    ([73.33, 73.43, 73.53], True),  # 0.10 off, deviation 0.1
    ([73.43, 73.53, 73.63], True),  # 0.20 off: just two deviations
    ([73.45, 73.55, 73.65], False),
])
def test_the_check_is_two_deviations_over_seeds(tmp_path, values, within):
    make_runs(tmp_path, "KD", values)
    assert cell(tmp_path, "KD").within("last") is within


def test_last_and_best_epoch_and_the_headline(tmp_path):
    make_run(tmp_path, "KD", 0, 73.0, best=74.0)
    make_run(tmp_path, "EA-KD", 0, 75.0, best=75.5)
    last, best = filled(tmp_path), filled(tmp_path, epoch="best")
    assert last.cells["KD", PAIR].mean_and_std("best")[0] == 74.0
    assert (last.gain(last.cells["EA-KD", PAIR]).mean, best.gain(best.cells["EA-KD", PAIR]).mean) == (2.0, 1.5)


def test_missing_cells_are_shown_as_missing_and_give_no_gain(tmp_path):
    make_run(tmp_path, "EA-KD", 0, 75.0)
    table = filled(tmp_path)
    empty = table.cells["KD", PAIR]
    assert empty.runs == () and math.isnan(empty.mean_and_std("last")[0]) and empty.within("last") is None
    assert table.gain(table.cells["EA-KD", PAIR]) is None  # its baseline is missing
    assert sum(not cell.runs for cell in table.cells.values()) == 97


def test_unfinished_runs_are_left_out_and_counted(tmp_path):
    make_run(tmp_path, "KD", 0, 73.0)
    for seed, status in enumerate(("running", "interrupted", "failed"), 1):
        make_run(tmp_path, "KD", seed, 50.0, status=status)
    table = filled(tmp_path)
    assert table.cells["KD", PAIR].by_seed("last") == {0: 73.0} and table.unfinished == 3


def test_each_seed_is_counted_once(tmp_path):
    make_run(tmp_path, "KD", 0, 73.0, name="a")
    make_run(tmp_path, "KD", 0, 99.0, name="b")
    make_run(tmp_path, "KD", 1, 74.0, name="c")
    assert cell(tmp_path, "KD").by_seed("last") == {0: 73.0, 1: 74.0}


@pytest.mark.parametrize("changed", [
    {"SOLVER__EPOCHS": 2}, {"DATASET__TRAIN_FRACTION": 0.1}, {"SOLVER__BATCH_SIZE": 128},
    {"DATASET__VAL_FRACTION": 0.1}, {"SOLVER__AMP": "bf16"},
])
def test_another_protocol_is_marked_and_neither_mixed_nor_compared_nor_ranked(tmp_path, changed):
    make_run(tmp_path, "KD", 1, 90.0, **changed)
    make_run(tmp_path, "DKD", 1, 76.0)
    make_run(tmp_path, "CTKD", 1, 74.0)
    table = filled(tmp_path)
    kd = table.cells["KD", PAIR]
    key, value = next(iter(changed.items()))
    assert [text.split()[:2] for text in kd.differences] == [[key.replace("__", "."), str(value)]]
    assert math.isnan(kd.difference("last")) and kd.within("last") is None
    assert table.ranked_first == {("DKD", PAIR)}
    make_run(tmp_path, "KD", 0, 73.0)  # a run with the paper's protocol is preferred
    kd = cell(tmp_path, "KD")
    assert (kd.by_seed("last"), kd.differences, kd.others) == ({0: 73.0}, (), 1)


def test_runs_on_a_few_images_of_coco_are_shown_as_not_comparable(tmp_path):
    column = "R-101 & R-18, AP"
    for row, data, seed in (("KD", "coco_tiny", 0), ("EA-KD", "coco", 0)):
        folder = make_run(tmp_path, row, seed, 0.0, table="6", column=column, DATASET__TYPE=data)
        (folder / "summary.json").write_text('{"status": "done", "headline": "ap", "last_ap": 90.0, "best_ap": 90.0}')
    table = filled(tmp_path, "6")
    kd = table.cells["KD", column]
    assert kd.by_seed("last") == {0: 90.0} and kd.differences == ("DATASET.TYPE coco_tiny (not coco)",)
    assert math.isnan(kd.difference("last")) and kd.within("last") is None
    assert table.gain(table.cells["EA-KD", column]) is None and not table.ranked_first
    assert "DATASET.TYPE coco_tiny (not coco)" in " ".join(markdown(layout(table, "command")).split())


@pytest.mark.parametrize(("numbers", "differences"), [
    ((7, 50_000), ("7 classes (not 100)",)),
    ((100, 8), ("8 training images (not 50000)",)),
    ((7, 8), ("7 classes (not 100)", "8 training images (not 50000)")),
    ((100, 60_000), ("60000 training images (not 50000)",)),
    ((100, 49_999), ()),  # an image that cannot be read
])
def test_own_data_in_the_format_of_a_data_set_is_marked_and_ranked_apart(tmp_path, numbers, differences):
    own = dict(zip(("num_classes", "num_train"), numbers, strict=True)) | {"data_sha256": "c" * 64}
    make_run(tmp_path, "KD", 0, 99.0, metadata=own)
    make_run(tmp_path, "EA-KD", 0, 99.5, metadata=own)
    make_run(tmp_path, "DKD", 0, 76.0, metadata={"num_classes": 100, "num_train": 50_000})
    make_run(tmp_path, "CTKD", 0, 74.0)  # by a version that did not record the numbers
    table = filled(tmp_path)
    assert table.cells["KD", PAIR].differences == table.cells["EA-KD", PAIR].differences == differences
    assert math.isnan(table.cells["KD", PAIR].difference("last")) == bool(differences)
    assert table.cells["DKD", PAIR].differences == table.cells["CTKD", PAIR].differences == ()
    assert table.ranked_first == {("EA-KD", PAIR)} | ({("DKD", PAIR)} if differences else set())  # each on its own data
    text = " ".join(markdown(layout(table, "command")).split())
    assert all(one in text for one in differences)
    make_run(tmp_path, "KD", 0, 73.0, metadata={"num_classes": 100, "num_train": 50_000, "data_sha256": "b" * 64})
    if differences:
        assert (cell(tmp_path, "KD").by_seed("last"), cell(tmp_path, "KD").differences) == ({0: 73.0}, ())


def test_a_part_of_the_images_is_compared_with_the_same_part_of_the_data_set(tmp_path):
    for row, images in (("KD", 5000), ("DKD", 800)):
        make_run(tmp_path, row, 0, 50.0, DATASET__TRAIN_FRACTION=0.1,
                 metadata={"num_classes": 100, "num_train": images})
    make_run(tmp_path, "CTKD", 0, 50.0, DATASET__VAL_FRACTION=0.1, metadata={"num_classes": 100, "num_train": 45_000})
    assert [len(cell(tmp_path, row).differences) for row in ("KD", "DKD", "CTKD")] == [1, 2, 1]


def test_the_views_of_a_method_belong_to_its_protocol(tmp_path):
    make_run(tmp_path, "DKD", 0, 76.0)
    make_run(tmp_path, "KD", 0, 73.0)
    make_run(tmp_path, "MLD", 0, 79.0)  # two views
    make_run(tmp_path, "EA-MLD", 0, 79.5)  # and 480 epochs
    table = filled(tmp_path)
    assert table.ranked_first == {("DKD", PAIR)}
    assert table.across(table.cells["EA-MLD", PAIR]) and not table.across(table.cells["EA-KD", PAIR])
    assert table.cells["MLD", PAIR].protocol_text == "240 epochs, 2 views, batches of 64"


@pytest.mark.parametrize("changed", [
    {"KD__TEMPERATURE": 2.0}, {"DISTILLER__LS": True}, {"DISTILLER__STUDENT": "resnet20"}, {"DATASET__TYPE": "cifar10"},
    {"DISTILLER__TYPE": "EA-KD"}, {"DISTILLER__TEACHER_CHECKPOINT": "random"},
])
def test_another_experiment_fills_no_cell_of_this_one(tmp_path, changed):
    make_run(tmp_path, "KD", 0, 90.0, **changed)
    assert cell(tmp_path, "KD").runs == ()


def test_method_settings_that_the_table_does_not_state_are_compared(tmp_path):
    make_run(tmp_path, "DKD", 0, 90.0, DKD__LS_WEIGHT=2.0, metadata={"overridden": {"DKD.LS_WEIGHT": 2.0}})
    assert cell(tmp_path, "DKD").runs == ()
    make_run(tmp_path, "DKD", 0, 76.0, DKD__LS_WEIGHT=1.0)
    assert cell(tmp_path, "DKD").by_seed("last") == {0: 76.0}


def test_a_name_place_device_store_or_other_spelling_makes_no_difference(tmp_path):
    make_run(tmp_path, "MLD+LS", 0, 78.0, EXPERIMENT__NAME="mine", DATASET__ROOT="/data", DEVICE="cpu", COMPILE=True,
             TEACHER_CACHE__KIND="replay")
    make_run(tmp_path, "MLD+LS", 1, 79.0, EXPERIMENT__LOGIT_STAND=True, DISTILLER__t=2.0)
    assert cell(tmp_path, "MLD+LS").by_seed("last") == {0: 78.0, 1: 79.0}


def test_runs_from_two_teachers_are_not_mixed(tmp_path):
    make_runs(tmp_path, "KD", [73.0, 74.0])
    make_run(tmp_path, "KD", 2, 90.0, metadata={"teacher_sha256": "b" * 64})
    kd = cell(tmp_path, "KD")
    assert (kd.by_seed("last"), kd.others) == ({0: 73.0, 1: 74.0}, 1)


def test_average_gains_are_over_the_pairs_that_have_one(tmp_path):
    for column, baseline, variant in ((PAIR, 73.0, 75.0), ("vgg13_vgg8", 72.0, 73.0), ("vgg13_mv2", 67.0, None)):
        make_run(tmp_path, "KD", 0, baseline, column=column)
        if variant:
            make_run(tmp_path, "EA-KD", 0, variant, column=column)
    averages = filled(tmp_path).average_gains()
    assert (averages["EA-KD"].mean, averages["EA-KD"].cells, averages["EA-KD"].of) == (1.5, 2, 7)
    assert (averages["overall"].mean, averages["overall"].cells, averages["overall"].of) == (1.5, 2, 49)
    assert math.isnan(averages["EA-DKD"].mean)
    assert averages["EA-KD"].printed == 1.48 and averages["EA-KD"].recomputed == pytest.approx(10.40 / 7)


def test_gains_in_several_metrics_have_no_average(tmp_path):
    table = filled(tmp_path, "6")
    assert {cell.cell.metric for cell in table.cells.values()} >= {"ap", "ap50", "ap75"} and not table.average_gains()


def test_overrides_of_all_runs_select_runs_and_are_shown(tmp_path):
    make_run(tmp_path, "EA-KD", 0, 75.0)
    make_run(tmp_path, "EA-KD", 1, 74.0, EA__COMPAT="release")
    release = cell(tmp_path, "EA-KD", extra=("EA.COMPAT=release",))
    assert release.by_seed("last") == {1: 74.0} and release.differences == ("EA.COMPAT release (not paper)",)
    assert cell(tmp_path, "EA-KD").by_seed("last") == {0: 75.0}


def test_tables_laid_out_the_other_way_compare_along_their_rows(tmp_path):
    make_run(tmp_path, "ViT-B", 0, 54.0, table="5", column="KD")
    make_run(tmp_path, "ViT-B", 0, 57.0, table="5", column="EA-KD")
    table = filled(tmp_path, table="5")
    assert list(table.groups) == ["ViT-B", "DeiT-B", "Swin-B"] and list(table.groups["ViT-B"]) == ["KD", "EA-KD"]
    assert table.ranked_first == {("ViT-B", "EA-KD")}
    assert table.gain(table.cells["ViT-B", "EA-KD"]).mean == 3.0
