"""The two kinds of errors: those that the user can fix, and those of a failed run."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

PLACE_FAILS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
DISK_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}


MOST_TEXT = 1500  # characters of a message; a longer one quotes something huge in its middle


class Short(Exception):
    """An exception whose message keeps its beginning and its end, which say where and what to do, if it is long."""

    def __init__(self, message: object = ""):
        text = str(message)
        kept = (MOST_TEXT - 5) // 2
        super().__init__(text if len(text) <= MOST_TEXT else f"{text[:kept]} ... {text[-kept:]}")


class UserError(Short, ValueError):
    """An error that the user can fix: a wrong key, value, name or file, or missing data (exit code 2).

    The message is one line with the file and key, the value found, what was expected, and the nearest valid name or a
    command that helps.
    """


class RunError(Short, RuntimeError):
    """An error that ends a run, such as a full disk (exit code 3). Everything saved before stays intact."""


class NotFinite(RunError):
    """A loss, or a result of an epoch, is not finite. Only this one is the fault of a run's settings."""


def first_line(error: object, kind: bool = True) -> str:
    """The type of an exception and the first line of what it says, up to 200 characters: "KeyError: 'a'".

    Without `kind` the line alone, or the type if there is none.
    """
    name, line = type(error).__name__, next(iter(str(error).strip().splitlines()), "")[:200]
    return ": ".join(filter(None, (name if kind or not line else "", line)))


def counted(number: int, word: str) -> str:
    """A number with its word in a message: "1 run", "2 runs", "2 classes"."""
    ending = "" if number == 1 else "es" if word.endswith("s") else "s"
    return f"{number} {word}{ending}"


def cannot_write(path: str | Path, error: OSError) -> UserError | RunError:
    """The error for a file that cannot be written: a RunError for a disk error, a UserError for a wrong path."""
    kind = RunError if error.errno in DISK_FAILS else UserError
    return kind(f"{path}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Context for writing a file or folder: an OSError becomes the error of `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
