"""Numbers, texts and other values that no configuration key should be given (tests/fuzz.py)."""

NUMBERS = (0, -1, 1, 2, 3, 0.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, 2**31, 2**31 - 1, 2**63, -(2**63), 10**30, 10**400,
           float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "~", "None", "null", "true", "a" * 5000, "\0", "a\nb", "\ud800", "\U0001f525", "1e5", "0x10", "1_000",
         "[", "{a: b", "*a", "&a [*a]", "!!python/name:os.system", "!!binary '='", "(1, 2)", "(1, a)", "(", "../..",
         "$HOME", "~/x", "~nobody-here", "-", "=", "a=b", "{seed}", "%s", "é", "nan", "inf", "1" * 5000,
         "0x" + "f" * 4200)
OTHERS = (None, True, False, [], {}, [[]], {"a": 1}, {1: 2}, [None], [1, "a"], [float("nan")], b"\xff", [{}], {"": {}})
