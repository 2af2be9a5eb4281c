"""Tables in Markdown, for pages and the terminal; the one writer of all of them."""

import html
import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], aligned: bool = False) -> str:
    """A table of cells without line breaks, without an end of line; `aligned` columns are readable as plain text."""
    lines = [list(head), *map(list, rows)]
    if not aligned:
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(head), *lines[1:]))
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = (f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
    return "\n".join([first, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *others])


def cell(text: str) -> str:
    """Any text as one cell: markup is shown as it is, line breaks become spaces."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def prose(text: str) -> str:
    """Running text on one line, in which no HTML begins; its own Markdown, such as bold words, stays."""
    return " ".join(re.sub("<(?=[a-zA-Z/!?])", "&lt;", text).split())
