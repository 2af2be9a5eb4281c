"""The parser of the commands: KEY VALUE may stand behind any option."""

import pytest

from mdistiller.command import Parser
from mdistiller.errors import UserError

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
    for words in (["--cfg", ""], ["--sets", "a", ""], ["--sets", "", "LM.VAL_FILE", ""]):
        with pytest.raises(UserError, match=f"{words[0]}: expected a value, found an empty one"):
            parser.parse_intermixed_args(words)


def test_an_option_is_typed_whole():
    with pytest.raises(UserError, match="unrecognized arguments: --figur"):
        parsed("--figur 2")
