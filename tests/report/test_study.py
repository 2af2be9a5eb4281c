"""The project's own studies: planned runs, and tables from synthetic folders compared with numbers computed by hand."""

import dataclasses
import json

import pytest
import yaml

from mdistiller.config import load_cfg
from mdistiller.config.stated import BASE
from mdistiller.errors import UserError
from mdistiller.report import study
from mdistiller.report.pages import marks, parts_of
from mdistiller.report.study import load_studies, table
from mdistiller.runs.keeping import keep_records
from mdistiller.runs.records import find_runs
from tests.report.support import REPOSITORY, nested
from tools import tables

STUDY = load_studies()["small"]


def made(root, line, seed, last, **metadata):
    folder = root / f"{line.training.name}_s{seed}"
    folder.mkdir(parents=True)
    config = {**BASE, **line.training.settings, "EXPERIMENT.SEED": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(config)))
    (folder / "run.json").write_text(json.dumps({"overridden": {}, "teacher_sha256": "a" * 64, **metadata}))
    summary = {"status": "done", "last_top1": last, "best_top1": last + 1, "wall_seconds": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return folder


def test_every_line_of_a_study_loads_and_has_its_own_run():
    lines = STUDY.lines.values()
    for line in lines:
        cfg = load_cfg(line.training.path, line.training.all_overrides)
        precision = "none" if line.name.endswith("float32") else "bf16"
        assert (cfg.DATASET.TRAIN_FRACTION, cfg.SOLVER.AMP) == (0.2, precision)
        assert line.baseline is None or line.baseline in STUDY.lines
    assert len({line.training.name for line in lines}) == len(lines)
    assert len({json.dumps(sorted(line.training.settings.items()), default=str) for line in lines}) == len(lines)


def test_settings_of_lines_override_those_of_sections_and_of_the_protocol():
    def stated(name):
        settings = STUDY.lines[name].training.settings
        return [settings.get(key) for key in ("SOLVER.EPOCHS", "DISTILLER.STUDENT", "KD.LOSS.KD_WEIGHT")]

    assert stated("KD, 1.8") == [15, "resnet8", 1.8] and stated("KD, 3, long") == [45, "resnet8", 3.0]
    assert stated("KD, resnet20") == [15, "resnet20", None]


def test_gains_are_paired_by_seed(tmp_path):
    for seed, (baseline, variant) in enumerate([(20.0, 21.0), (22.0, 24.0), (24.0, 27.0)]):
        made(tmp_path, STUDY.lines["KD"], seed, baseline)
        made(tmp_path, STUDY.lines["EA-KD"], seed, variant)
    text = table(STUDY, find_runs(tmp_path))
    assert "| KD | 3 of 5 | 22.00 ± 2.00 | 23.00 ± 2.00 |" in text
    # differences 1, 2, 3: mean 2, deviation 1, error 0.5774; t(2, 0.975) = 4.3027; two-sided p of t = 3.4641 is 0.0742
    assert "| EA-KD | 3 of 5 | 24.00 ± 3.00 | 25.00 ± 3.00 | KD | +2.00 | -0.48 to +4.48 |  | 0.074 | 0.074 |" in text
    assert "| EA-DKD |" not in text and "\n\nMissing: DKD; EA-DKD; CTKD; EA-CTKD; " in text


def test_a_tuned_line_has_the_settings_of_its_file_and_without_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "HOME", tmp_path)
    lines = load_studies()["fair"].lines
    assert len(lines) == 27 and list(lines)[:3] == ["KD", "EA-KD", "EA-KD, normalized"]
    assert not any(line.ready for line in lines.values())
    (tmp_path / "results" / "fair").mkdir(parents=True)
    lines["EA-KD, normalized"].tuned.write_text("KD.LOSS.KD_WEIGHT: 2.5\n")
    fair = load_studies()["fair"]
    line = fair.lines["EA-KD, normalized"]
    assert line.ready and line.training.settings["KD.LOSS.KD_WEIGHT"] == 2.5
    assert line.training.settings["EA.KIND"] == "normalized" and not fair.lines["EA-KD"].ready
    assert "KD.LOSS.KD_WEIGHT" not in load_studies(tuned=False)["fair"].lines["EA-KD, normalized"].training.settings
    made(tmp_path, line, 0, 30.0)
    made(tmp_path, dataclasses.replace(line, training=fair.lines["KD"].training), 0, 20.0)
    text = table(fair, find_runs(tmp_path))
    assert "| EA-KD, normalized | 1 of 5 | 30.00 | 31.00 |" in text and "\n\nMissing: KD; EA-KD; DKD; " in text


def test_the_whole_schedule_is_trained_as_published():
    lines = load_studies()["full"].lines
    for line in lines.values():
        cfg = load_cfg(line.training.path, line.training.all_overrides)
        assert (cfg.SOLVER.EPOCHS, cfg.DATASET.TRAIN_FRACTION) == (240, 1.0)
        assert cfg.SOLVER.LR_DECAY_STAGES == [150, 180, 210]
        assert line.baseline is None or line.baseline in lines
    assert cfg.DISTILLER.STUDENT == "resnet8" and lines["wrn_16_2"].seeds == 1


def test_runs_of_another_protocol_do_not_count(tmp_path):
    folder = made(tmp_path, STUDY.lines["KD"], 0, 20.0)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("EPOCHS: 15", "EPOCHS: 16"))
    assert "EPOCHS: 16" in (folder / "config.yaml").read_text()
    assert "; KD; " in table(STUDY, find_runs(tmp_path))


def test_kept_records_do_not_name_the_machine_and_give_the_same_table(tmp_path):
    named = {"package": "/a/place", "teacher_checkpoint": "/a/place/x.pth", "teacher_cache": "/a/place/cache"}
    sessions = [{"host": "somewhere", "command": "/a/place/train.py"}]
    made(tmp_path / "runs", STUDY.lines["KD"], 0, 20.0, host="somewhere", sessions=sessions, commit="c0ffee", **named)
    assert keep_records(find_runs(tmp_path / "runs"), tmp_path / "kept") == 1
    (line,) = (tmp_path / "kept" / "runs.jsonl").read_text().splitlines()
    metadata = json.loads(line)["run"]
    assert metadata["commit"] == "c0ffee" and "somewhere" not in line and "/a/place" not in line
    assert table(STUDY, find_runs(tmp_path / "kept")) == table(STUDY, find_runs(tmp_path / "runs"))


def test_further_comparisons_are_paired_by_the_seeds_of_both(tmp_path):
    for seed, last in enumerate([20.0, 22.0]):
        made(tmp_path, STUDY.lines["KD"], seed, last)
    for seed, last in enumerate([21.0, 25.0, 90.0]):
        made(tmp_path, STUDY.lines["EA-KD"], seed, last)
    pairs = [("EA-KD", "KD"), ("EA-DKD", "DKD")]  # no run of the second
    text = table(dataclasses.replace(STUDY, comparisons={"Further": pairs}), find_runs(tmp_path))
    # differences 1, 3: mean 2, deviation 1.4142, error 1; t(1, 0.975) = 12.706; p of t = 2: 1 - 2 atan(2) / pi = 0.295
    rows = text.partition("### Further\n\n")[2].splitlines()
    assert rows[0].endswith("| seeds of both | gain, last epoch | 95 % interval | pooled | p | p, Holm |")
    assert rows[2:5] == ["| EA-KD | KD | 2 | +2.00 | -10.71 to +14.71 |  | 0.295 | 0.295 |", "",
                         "Missing: EA-DKD over DKD."]


def test_lines_are_compared_by_another_measure_of_the_last_epoch(tmp_path):
    for name, losses in (("KD", [1.0, 1.1]), ("EA-KD", [0.99, 1.07])):
        for seed, loss in enumerate(losses):
            made(tmp_path, STUDY.lines[name], seed, 20.0)
            path = tmp_path / f"{STUDY.lines[name].training.name}_s{seed}" / "metrics.jsonl"
            path.write_text(json.dumps({"epoch": 1, "test_loss": loss}) + "\n")
    spec = {"By loss": {"measure": "test_loss", "factor": 1000, "pairs": [["EA-KD", "KD"]]}}
    text = table(dataclasses.replace(STUDY, comparisons=spec), find_runs(tmp_path))
    # differences -10, -30, in thousandths: mean -20, error 10, p as above
    assert "| EA-KD | KD | 2 | -20.00 | -147.06 to +107.06 |  | 0.295 | 0.295 |" in text
    assert "| seeds of both | difference, last epoch |" in text  # of a loss, less is better
    (path.parent / "metrics.jsonl").unlink()
    text = table(dataclasses.replace(STUDY, comparisons=spec), find_runs(tmp_path))
    assert "| EA-KD | KD | 1 | -10.00 |" in text
    spec["By loss"]["measure"] = "test_teacher_kl"  # which these runs have not measured
    text = table(dataclasses.replace(STUDY, comparisons=spec), find_runs(tmp_path))
    assert "Missing: EA-KD over KD." in text


def test_further_measurements_are_means_of_the_last_epoch_over_the_runs_that_have_them(tmp_path):
    for seed, losses in enumerate(([9.0, 1.0], [9.0, 2.0], [9.0])):
        folder = made(tmp_path, STUDY.lines["KD"], seed, 20.0)
        rows = [{"epoch": epoch, "test_loss": loss} for epoch, loss in enumerate(losses, start=1)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"epoch": 3}][:2]))
    one = dataclasses.replace(STUDY, measures={"loss": "test_loss", "none": "test_nothing"})
    assert "| method | loss | none |\n| --- | --- | --- |\n| KD | 1.50 |  |" in table(one, find_runs(tmp_path))


def test_a_comparison_of_two_tables_is_one_test_and_ranks_are_of_common_seeds(tmp_path):
    for name, results in (("KD", [20.0, 22.0]), ("EA-KD", [21.0, 25.0]), ("DKD", [30.0]), ("EA-DKD", [31.0, 9.0])):
        for seed, last in enumerate(results):
            made(tmp_path, STUDY.lines[name], seed, last)
    ranks = {"Ranks": {"of": ["plain", "EA"], "blocks": [["KD", "EA-KD"], ["DKD", "EA-DKD"]]}}
    one = dataclasses.replace(STUDY, comparisons={"Again": [["EA-KD", "KD"]]}, ranks=ranks)
    text = table(one, find_runs(tmp_path))
    assert text.count("| EA-KD |") == 2 and "Tests of all tables together: 1;" in text
    assert "| EA | 1.00 |" in text and "| plain | 2.00 |" in text  # of EA-DKD, seed 1 has no partner
    for seed in range(2, 6):
        made(tmp_path, STUDY.lines["KD"], seed, 20.0)
    assert "| KD | 6 of 6 |" in table(one, find_runs(tmp_path))


@pytest.mark.parametrize("name", load_studies())
def test_comparisons_name_existing_lines(name):
    one = load_studies()[name]
    specs = [spec if isinstance(spec, list) else spec["pairs"] for spec in one.comparisons.values()]
    assert {line for pairs in specs for pair in pairs for line in pair} <= one.lines.keys()


def test_the_page_of_results_is_the_table_of_the_records():
    page = (REPOSITORY / "docs" / "results.md").read_text()
    before, after = parts_of(REPOSITORY / "docs" / "results.md", "small")
    text = table(STUDY, find_runs(REPOSITORY / "results"))
    assert f"{text.splitlines()[0]}\n\n{page[len(before):-len(after)].partition('-->')[2].strip()}" == text.strip()


def test_the_numbers_of_the_readme_are_those_of_the_page():
    page, readme = ((REPOSITORY / name).read_text().splitlines() for name in ("docs/results.md", "README.md"))
    rows = [line for line in readme if " of 5 |" in line]
    assert len(rows) >= 5 and set(rows) <= set(page)


def test_the_command_writes_the_page(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("small")))
    made(tmp_path / "runs", STUDY.lines["KD"], 0, 20.0)
    command = ["tables.py", "--study", "small", "--runs", str(tmp_path / "runs"), "--write", str(page)]
    monkeypatch.setattr("sys.argv", command)
    tables.main()
    title, _, printed = capsys.readouterr().out.strip().partition("\n\n")
    assert title == "## A small replica on CIFAR-100" and title not in page.read_text()
    assert printed in page.read_text() and "| KD | 1 of 5 | 20.00 |" in page.read_text()


def test_records_of_one_name_and_in_the_place_of_the_runs_are_refused(tmp_path):
    for root in ("a", "b"):
        folder = made(tmp_path / "runs" / root, STUDY.lines["KD"], 0, 20.0)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("EPOCHS: 15", "EPOCHS: 16"))
    with pytest.raises(UserError, match="same name"):
        keep_records(find_runs(tmp_path / "runs"), tmp_path / "kept")
    with pytest.raises(UserError, match="into its own folder"):
        keep_records(find_runs(tmp_path / "runs" / "a"), tmp_path / "runs" / "a")
