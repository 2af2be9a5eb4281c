"""Text of the command line, of paths and of messages."""

import difflib
import os
import reprlib
from collections.abc import Iterable
from typing import Any


class Typed(str):
    """A word of the command line. It is read as YAML, unless its key holds text ("007" can be a name)."""


class _Repr(reprlib.Repr):
    def repr_int(self, value, level):
        if value.bit_length() > 500:  # Python does not print integers of more than 4,300 digits
            return f"an integer of {value.bit_length():,} bits"
        return super().repr_int(value, level)

    def repr_Typed(self, value, level):
        return self.repr_str(str(value), level)


_repr = _Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel = 3


def shown(value: Any) -> str:
    """A value as text for a message, shortened if it is long."""
    text = _repr.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def expanded(path: str) -> str:
    """The path with "~" and "$VARIABLES" expanded."""
    return os.path.expandvars(os.path.expanduser(path))


def nearest(word: Any, known: Iterable, count: int = 3) -> list[str]:
    """Up to `count` known texts that are most similar to `word`; those that differ only in case come first."""
    word, known = (word if isinstance(word, str) else shown(word))[:200], [str(one) for one in known]
    same = [one for one in known if one.lower() == word.lower()]
    return (same + [one for one in difflib.get_close_matches(word, known, n=count) if one not in same])[:count]
