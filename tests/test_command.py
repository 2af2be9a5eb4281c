"""The parser of the commands: KEY VALUE may stand behind any option. And how commands end: exit codes and words."""

import errno
import os
import signal

import pytest

from mdistiller.command import Interrupted, Parser, Terminated, exit_code, run_command
from mdistiller.errors import RunError, UserError

KEY = ["SOLVER.EPOCHS", "2"]


def parsed(line):
    parser = Parser()
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--power", nargs="*", type=float)
    parser.add_argument("--figure", nargs="+", choices=("1", "2"))
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--key")
    parser.add_argument("opts", nargs="*")
    args = parser.parse_intermixed_args(line.split())
    return {name: value for name, value in vars(args).items() if value}


@pytest.mark.parametrize(("line", "found"), [
    ("--seeds 10 20 SOLVER.EPOCHS 2", {"seeds": [10, 20]}),
    ("--seeds 10 SOLVER.EPOCHS 2 --sets a.jsonl", {"seeds": [10], "sets": ["a.jsonl"]}),
    ("--power 0.5 SOLVER.EPOCHS 2", {"power": [0.5]}),
    ("--figure 2 SOLVER.EPOCHS 2 --key x", {"figure": ["2"], "key": "x"}),
    ("--key DKD.BETA SOLVER.EPOCHS 2", {"key": "DKD.BETA"}),
    ("SOLVER.EPOCHS 2 --sets Dolly.jsonl N=Dolly.jsonl", {"sets": ["Dolly.jsonl", "N=Dolly.jsonl"]}),
    ("--sets Mine.yaml Mine.yml Mine.json SOLVER.EPOCHS 2", {"sets": ["Mine.yaml", "Mine.yml", "Mine.json"]}),
])
def test_overrides_behind_options_of_several_words_are_overrides(line, found):
    assert parsed(line) == {**found, "opts": KEY}


def test_overrides_keep_their_order_and_their_values():
    words = parsed("DEVICE cpu --sets a b SOLVER.LR -1e-3 SOLVER.DOT.DELTA -.5 EA.FILE=x.json --seeds 1 COMPILE False")
    assert words == {"sets": ["a", "b"], "seeds": [1], "opts": [
        "DEVICE", "cpu", "SOLVER.LR", "-1e-3", "SOLVER.DOT.DELTA", "-.5", "EA.FILE=x.json", "COMPILE", "False"]}


def test_an_empty_word_is_a_value_of_a_key_and_of_no_option():
    parser = Parser()
    parser.add_argument("--cfg")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("opts", nargs="*")
    assert parser.parse_intermixed_args(["LM.VAL_FILE", "", "--cfg", "a"]).opts == ["LM.VAL_FILE", ""]
    assert parser.parse_intermixed_args(["", "2"]).opts == ["", "2"]  # an unknown key
    for words in (["--cfg", ""], ["--sets", "a", ""], ["--sets", "", "LM.VAL_FILE", ""]):
        with pytest.raises(UserError, match=f"{words[0]}: expected a value, found an empty one"):
            parser.parse_intermixed_args(words)
    verify = Parser()  # of tools/cache.py
    verify.add_argument("words", nargs="*")
    assert verify.parse_args(["LM.VAL_FILE", ""]).words == ["LM.VAL_FILE", ""]
    with pytest.raises(UserError, match="words: expected a value, found an empty one"):
        verify.parse_args(["cache", ""])


def test_an_option_is_typed_whole():
    with pytest.raises(UserError, match="unrecognized arguments: --figur"):
        parsed("--figur 2")


def os_error(number, *place):
    return OSError(number, os.strerror(number), *place)


ENDS = [
    (UserError("a:\n  wrong"), 2, "a: wrong"),
    (RunError("a: failed"), 3, "a: failed"),
    (Interrupted(signal.SIGINT), 130, "interrupted by SIGINT: saved; again with --on"),
    (Interrupted(signal.SIGHUP), 143, "interrupted by SIGHUP: saved; again with --on"),
    (Terminated(), 143, "terminated"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 3, "not enough memory for this command; see the limits of this process (ulimit -v)"),
    (ImportError("a.so: failed to map segment from shared object"), 3,
     "not enough memory for this command; see the limits of this process (ulimit -v)"),
    (os_error(errno.EACCES, "/a"), 2, "/a: Permission denied"),
    (os_error(errno.ENOSPC, "/a"), 3, "/a: cannot be written: No space left on device"),
    (os_error(errno.ENOSPC), 3, "the output: cannot be written: No space left on device"),
]


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize(("error", "code", "words"), ENDS, ids=lambda value: type(value).__name__)
def test_an_end_that_is_no_fault_of_the_code_has_a_code_and_one_line(error, code, words, capsys):
    assert exit_code(raising(error), "again with --on") == code
    assert capsys.readouterr() == ("", f"error: {words}\n")


def test_a_command_ends_with_its_code_and_leaves_the_signal_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: 4)
    assert end.value.code == 4 and signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_has_seen_enough_ends_a_command_well(capsys):
    assert exit_code(raising(BrokenPipeError())) == 0 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [
    ImportError("No module named 'x'"), os_error(errno.EACCES), os_error(errno.ENOENT, "/a"), ValueError("a"),
], ids=repr)
def test_a_fault_of_the_code_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        exit_code(raising(error))
    assert caught.value is error
