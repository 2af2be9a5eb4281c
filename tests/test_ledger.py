"""The stored run of the ledger, and how differences are reported. The ledger is a command: python tests/ledger.py."""

import json

import pytest

from tests import ledger


def test_a_run_that_an_earlier_version_was_stopped_in_continues_to_its_end(tmp_path):
    stored = json.loads(ledger.STORED.read_text())["entries"]["continued"]
    found = ledger.run_entry(ledger.continue_run(tmp_path))
    assert found["summary"]["status"] == "done" and len(found["metrics"]) == 4
    for expected, line in zip(stored["metrics"], found["metrics"], strict=True):
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_differences_name_the_entry_and_ignore_what_is_new():
    expected = {"methods/KD": {"losses0": {"ce": "0x1p+0"}}, "runs/x": {"metrics": [{"epoch": 1}]}}
    found = {"methods/KD": {"losses0": {"ce": "0x1p+1", "new": 0}}, "runs/x": {"metrics": [{"epoch": 1, "x": 2}]}}
    assert ledger.differences(expected, found) == [
        "methods/KD: losses0: ce: expected '0x1p+0', found '0x1p+1'"
    ]


def test_a_changed_default_changes_the_configs_that_use_it():
    before = {"configs": {"A": 1, "B": 2}, "configs/x.yaml": {"B": 3}}
    after = {"configs": {"A": 9, "B": 3, "NEW": 0}, "configs/x.yaml": {}}
    assert ledger.config_differences(before, after) == [
        "configs: A: expected 1, found 9", "configs: B: expected 2, found 3", "configs/x.yaml: A: expected 1, found 9",
    ]
