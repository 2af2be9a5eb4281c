"""Replace the part of a page between two marks, which a command generates. Does not import torch."""

from collections.abc import Sequence
from pathlib import Path

from mdistiller.errors import UserError
from mdistiller.files import alone_in, read_plain, write_text


def marks(name: str) -> tuple[str, str]:
    """The lines before and after the part of a page with this name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def parts_of(page: Path, name: str) -> tuple[str, str]:
    """The text of a page before the first mark and from the second mark on. Raises UserError without marks."""
    begin, end = marks(name)
    try:
        old = read_plain(page) if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page}: cannot be read as text ({type(error).__name__})") from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise UserError(f"{page}: expected one line {begin} and, below it, one line {end}")
    return old[: old.index(begin)], old[old.index(end) :]


def write_into(page: Path, name: str, text: str, explained: Sequence[str] = ()) -> None:
    """Replace the text between the two marks; paragraphs of `explained` that stand above them are not repeated.

    Raises UserError when the marks are missing or the page cannot be written.
    """
    with alone_in(page.parent):  # another process may write another part of the page
        before, after = parts_of(page, name)
        for paragraph in explained:
            if paragraph in before:
                text = text.replace(f"{paragraph}\n\n", "")
        write_text(page, f"{before}{marks(name)[0]}\n\n{text}\n{after}")
