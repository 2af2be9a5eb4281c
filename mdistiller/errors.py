"""The two ways a run can end badly: the user can fix it, or the run failed."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

PLACE_FAILS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
DISK_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}


class UserError(ValueError):
    """Something the user can put right: a wrong key, value, name, file or missing data (exit code 2).

    The message is one line: the file and key, the value found, what was expected, and the nearest valid name or the
    command that helps.
    """


class RunError(RuntimeError):
    """A run that cannot go on, such as a non-finite loss (exit code 3). What was saved before stays intact."""


def cannot_write(path: str | Path, error: OSError) -> UserError | RunError:
    """The error that says why a file is not written: a RunError for the disk's fault, a UserError for a wrong place."""
    kind = RunError if error.errno in DISK_FAILS else UserError
    return kind(f"{path}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around what makes a file or folder: an OSError becomes `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
