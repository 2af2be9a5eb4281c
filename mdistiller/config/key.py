"""The declaration of one key: its default, its range or choices, and its meaning. Imports no torch.

A node of keys is a nested dict of `Key`; a plain value in it is a key with that default and without a range.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdistiller.config.files import parse, plain
from mdistiller.config.words import Typed, expanded, nearest, shown

MOST_INT, MOST_FLOAT = 2**31 - 1, 1e30  # limits of keys without a range: their sums fit into int64 and float32
NULLS = (None, "None", "null", "~")  # None as it is written in Python and in YAML


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    The type of a value is that of `default` (an int is accepted for a float). If the default is None, `types` gives the
    type, and None is allowed. `least` and `most` are inclusive bounds of a number, or of each number of a list; `above`
    and `below` are exclusive bounds. `choices` are the allowed texts or integers. `item` is the type of the items of a
    list. If `path` is True, "~" and "$VARIABLES" are expanded. `sets` names another key, of which this one is another
    spelling: what is said under it is assigned to that key, except None and, in a file that states both, False.
    """

    default: Any
    help: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple = ()
    types: tuple = ()
    item: type | None = None
    path: bool = False
    sets: str | None = None

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types that the value may have, apart from None."""
        return self.types or (list if isinstance(self.default, list | tuple) else type(self.default),)

    @property
    def optional(self) -> bool:
        return self.default is None

    def typed(self, value: Any) -> Any:
        """The value, converted to the type of the key. Raises ValueError with the expected type and the value found."""
        if isinstance(value, str):  # of a YAML file, a quoted value, which yacs reads as well
            by_text = self.kinds == (str,) if isinstance(value, Typed) else str in self.kinds
            value = str(value) if by_text else parse(value)
        elif self._item_kind is not str:
            value = plain(value)
        if self.optional and isinstance(value, str | None) and value in NULLS:
            return None
        for kind in self.kinds:
            fitting = self._items(value) if kind is list else _convert(value, kind)
            if fitting is not None:
                return self._expanded(fitting)
        expected = "a list such as " + self._example() if list in self.kinds else " or ".join(
            kind.__name__ for kind in self.kinds)
        raise ValueError(f"expected {expected}, found {shown(value)}")

    @property
    def _item_kind(self):
        return self.item or (type(self.default[0]) if isinstance(self.default, list | tuple) and self.default else None)

    def _example(self):
        return f"[{', '.join(map(str, self.default or (('a', 'b') if self.item is str else (1, 2))))}]"

    def read(self, value: Any) -> Any:
        """The value, converted to the type of the key and checked. Raises ValueError with what was expected and found.
        """
        value = self.typed(value)
        for item in value if isinstance(value, list | tuple) else (value,):
            self._check(item)
        return value

    def _items(self, value):
        if isinstance(value, str) and (value[:1] + value[-1:] == "()" or "," in value):  # tuples, which yacs accepts
            value = parse(f"[{value.removeprefix('(').removesuffix(')')}]")
        if not isinstance(value, list | tuple):
            return None
        kind = self._item_kind
        items = [item if kind is None else _convert(item, kind) for item in value]
        for item, found in zip(items, value, strict=True):
            if item is None:
                raise ValueError(f"expected {kind.__name__}, found {shown(found)}")
        return tuple(items) if isinstance(self.default, tuple) else items

    def _expanded(self, value):
        if not self.path:
            return value
        return [expanded(item) for item in value] if isinstance(value, list) else expanded(value)

    def _check(self, value):
        if isinstance(value, str) or (isinstance(value, int) and self.choices):
            if self.choices and value not in self.choices:
                near = nearest(value, self.choices, 1)
                hint = f"; nearest: {near[0]}" if near else ""
                raise ValueError(f"expected one of {', '.join(map(str, self.choices))}; found {shown(value)}{hint}")
            return
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        least, above, most, below = self.bounds(float if isinstance(value, float) else int)
        low = value >= least if least is not None else value > above
        high = value <= most if most is not None else value < below
        if not (low and high):
            raise ValueError(f"expected a number {self.range_text()}; found {shown(value)}")

    def bounds(self, kind: type) -> tuple:
        """(least, above, most, below) of a number; `MOST_INT` or `MOST_FLOAT` replaces bounds that the key lacks."""
        limit = MOST_INT if kind is int else MOST_FLOAT
        least = -limit if self.least is None and self.above is None else self.least
        most = limit if self.most is None and self.below is None else self.most
        return least, self.above, most, self.below

    def range_text(self) -> str:
        """The range as text, such as "greater than 0 and at most 1"."""
        words = [f"{word} {_number(bound)}" for word, bound in (
            ("at least", self.least), ("greater than", self.above), ("at most", self.most), ("below", self.below))
            if bound is not None]
        if self.most is None and self.below is None:
            words.append(f"at most {_number(MOST_INT if int in (*self.kinds, self.item) else MOST_FLOAT)}")
        if self.least is None and self.above is None:
            words.insert(0, f"at least {_number(-(MOST_INT if int in (*self.kinds, self.item) else MOST_FLOAT))}")
        return " and ".join(words)


def _number(bound):
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def weight_key(default: float, of: str = "the distillation loss") -> Key:
    """The key of a factor of a loss; `of` names the loss."""
    return Key(default, least=0, most=1e9, help=f"Weight of {of}.")


def temperature_key(default: float, of: str = "the softmax of student and teacher") -> Key:
    """The key of a temperature; its range keeps its square, and a logit divided by it, finite."""
    return Key(default, above=0, most=1e4, help=f"Temperature of {of}.")


def warm_up_key(default: int, of: str = "the distillation loss") -> Key:
    """The key of the number of epochs in which the weight of a loss rises linearly; `of` names the loss."""
    return Key(default, least=0, most=10**6, help=f"Epochs in which the weight of {of} rises linearly.")


def flat_keys(node: Mapping, prefix: str = "") -> dict[str, Key]:
    """The keys of a node by dotted name; plain values become `Key`s."""
    flat = {}
    for word, value in node.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{word}.")
        else:
            flat[f"{prefix}{word}"] = value if isinstance(value, Key) else Key(value)
    return flat


def _convert(value, kind):
    """The value as a `kind`, or None if it cannot be converted."""
    if isinstance(value, str) and kind in (int, float):  # YAML 1.1 reads 1e-4 as text
        value = _number_of(value, kind)
    number = isinstance(value, int | float) and not isinstance(value, bool) and _holdable(value)
    if kind is bool:
        return bool(value) if isinstance(value, bool) or (number and value in (0, 1)) else None
    if kind is int:
        return int(value) if number and value == int(value) else None
    if kind is float:
        return float(value) if number else None
    if kind is str:
        if isinstance(value, float):
            return str(value)
        return _text(str(value)) if isinstance(value, str) or number else None
    return value if isinstance(value, kind) else None


def _number_of(text, kind):
    """The number that a text is, such as 1e-4 or 1_000, or None. Raises ValueError for 010, which YAML 1.1 has as 8."""
    padded = re.fullmatch(r"([-+]?)0[0_]*(\d[\d_.e+-]*)", text, re.ASCII)
    if padded:
        sign, rest = padded.groups()
        octal = f" or {sign}0o{rest}" if re.fullmatch("[1-7][0-7]*", rest) else ""
        raise ValueError(f"expected a number without a leading zero, found {shown(text)}; write {sign}{rest}{octal}")
    try:
        return kind(text) if text.isascii() else None
    except ValueError:
        return None


def _text(value):
    """The text, if it can be written to a file and be part of a file name; else ValueError."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected UTF-8, found {shown(value)}") from None
    if "\0" in value:
        raise ValueError(f"expected text without a NUL character, found {shown(value)}")
    return value


def _holdable(number):
    try:
        return math.isfinite(number)
    except OverflowError:  # an int larger than any float
        return False
