"""Numbers, texts and other values that no configuration key should be given, and harm to files (tests/fuzz.py)."""

import contextlib
import random
import sys

import yaml

NUMBERS = (0, -1, 1, 2, 3, 0.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, 2**31, 2**31 - 1, 2**63, -(2**63), 10**30, 10**400,
           16**4200, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "~", "None", "null", "true", "a" * 5000, "\0", "a\nb", "\ud800", "\U0001f525", "1e5", "0x10", "1_000",
         "[", "{a: b", "*a", "&a [*a]", "!!python/name:os.system", "!!binary '='", "(1, 2)", "(1, a)", "(", "../..",
         "$HOME", "~/x", "~nobody-here", "-", "=", "a=b", "{seed}", "%s", "é", "nan", "inf", "1" * 5000,
         "0x" + "f" * 4200)
OTHERS = (None, True, False, [], {}, [[]], {"a": 1}, {1: 2}, [None], [1, "a"], [float("nan")], b"\xff", [{}], {"": {}})
DEEP = ("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000)


class Hexadecimal(yaml.SafeDumper):
    """Writes YAML with integers in hexadecimal, in which Python reads and writes more than 4,300 digits."""


Hexadecimal.add_representer(int, lambda dumper, one: dumper.represent_scalar("tag:yaml.org,2002:int", hex(one)))


@contextlib.contextmanager
def any_digits():
    """Let Python write integers of any length in decimal, to make inputs of them."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes cut off, changed or put in."""
    start, new = chance.randrange(len(content) + 1), chance.randbytes(chance.choice((1, 1, 2, 8)))
    return chance.choice((content[:start], content[:start] + new + content[start:],
                          content[:start] + new + content[start + len(new):]))
