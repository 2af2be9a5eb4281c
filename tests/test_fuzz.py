"""A few cases of tests/fuzz.py, and a test that it finds faults."""

import logging

import pytest

from tests import fuzz as fuzzing


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzzing, "remember", lambda: None)
        yield fuzzing.Fuzz(tmp_path_factory.mktemp("fuzz"))


def test_random_keys_and_records_end_in_one_line_or_a_result(fuzz):
    logging.disable(logging.CRITICAL)
    try:
        fuzz.run(["keys", "records"], tries=60, seconds=60)
    finally:
        logging.disable(logging.NOTSET)
    assert fuzz.tries.total() > 0 and not fuzz.found


def test_the_fuzzer_reports_other_exceptions_with_the_input(fuzz, monkeypatch):
    def broken(self, chance):
        def action():
            raise KeyError("what nobody expected")

        action.tried = "a key"
        return action

    monkeypatch.setattr(fuzzing.Keys, "attempt", broken)
    assert "KeyError" in fuzz.attempt("keys", 1)
    assert "keys:1" in fuzz.found.pop("KeyError outside the package")
