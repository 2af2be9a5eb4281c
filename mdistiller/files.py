"""Atomic writing of files, locks and hashes. Imports only the standard library."""

import contextlib
import csv
import errno
import hashlib
import io
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mdistiller.errors import RunError, cannot_write, first_line, writing

try:
    import fcntl
except ImportError:
    raise ImportError("Windows has only mdistiller.losses; all else needs Linux, macOS or WSL") from None

log = logging.getLogger("mdistiller")
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # the last is another on macOS
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.EBADF}  # EBADF: a folder of NFS
SAY_AFTER, PATIENCE, TRY_EVERY = 5.0, 120.0, 0.02  # seconds of waiting for a lock
WITHOUT_LOCKS: set[int] = set()  # file systems (their devices) that the log has named
Held = TypeVar("Held")


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8 with `write_atomically`. Halves of surrogate pairs, which have no UTF-8, are escaped."""
    write_atomically(Path(path), lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def csv_text(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV of rows by field, with a header; fields that a row lacks are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_rows(path: str | Path, errors: str = "strict") -> csv.DictReader:
    """The rows by field of a file with the text of `csv_text`.

    Raises ValueError if its last line has no end, since the number there may be cut off, and the errors of
    `read_plain`.
    """
    text = read_plain(path, errors)
    if text and not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    return csv.DictReader(io.StringIO(text, newline=""))


def write_atomically(path: Path, write, keep: Path | None = None) -> None:
    """Call `write(binary file)` for a temporary file and rename it to `path`, so that `path` is never incomplete.

    If `keep` is given, the old file is first renamed to it. Raises RunError if the disk is full or read-only, and
    UserError if `path` is not possible; the files at both paths are then unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # "." would only be busy
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            _to_the_disk(file)
        with contextlib.suppress(PermissionError):  # file systems without permissions
            os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private, the result is not
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # PyTorch's zip writer reports a full disk in this way
        reason = first_line(error, kind=False)
        if "unexpected pos" in reason or "file write failed" in reason:
            reason = "No space left on device, or file size limit reached"
        raise RunError(f"{path}: cannot be written: {reason}") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def open_plain(path: str | Path) -> BinaryIO:
    """Open a file for reading. Raises OSError if it is missing, and for a pipe or a device, which might never end.

    The null device, which is empty, counts as a file: `--cfg /dev/null` is a configuration of defaults.
    """
    status = os.stat(path)
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)  # opening a folder raises what it is
    if not plain and not os.path.samestat(status, os.stat(os.devnull)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, "rb")


def read_plain(path: str | Path, errors: str = "strict") -> str:
    """The text (UTF-8) of a file. Raises OSError as `open_plain` does, UnicodeDecodeError if `errors` is "strict"."""
    with open_plain(path) as file:
        return file.read().decode("utf-8", errors)


def read_text(path: str | Path) -> str:
    """The text of a file; empty when it cannot be read."""
    try:
        return read_plain(path, errors="replace")
    except OSError:
        return ""


def lock(path: Path, inherited: bool = True) -> io.TextIOBase | None:
    """Open a file and lock it until it is closed or the process ends; returns None if another process holds the lock.

    With `inherited`, forked processes hold the lock too, until the last of them ends. If the file system has no locks
    (Lustre without `-o flock`, some network drives), a warning is logged and the file is open without a lock. Raises
    UserError or RunError (see `writing`) when the file cannot be opened.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        file = open(path, "a", opener=_without_waiting)
    if not taken(file, path, inherited):
        file.close()
        return None
    return file


def taken(file: io.IOBase | int, path: Path, inherited: bool = True) -> bool:
    """Whether this process has the lock of an open file now, or its file system has none; False if another has it.

    `path` is the file's, and `inherited` as for `lock`.
    """
    try:
        (fcntl.flock if inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
        _say_no_locks(path)
    return True


def _say_no_locks(path):
    """Log it once for each file system: a study takes a lock several times in every epoch, a cache one in each."""
    device = os.stat(path).st_dev
    if device not in WITHOUT_LOCKS:
        WITHOUT_LOCKS.add(device)
        log.warning("%s: this file system has no locks; let only one process at a time train in a folder, or fill it",
                    path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A context for reading and then replacing files of a folder, which one process at a time can be in.

    The folder itself is locked, so that no file of a lock is left in it. Raises UserError or RunError when it cannot be
    opened, or when another process stays in it too long.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with writing(folder):
            wait_for(lambda: taken(descriptor, folder) or None, folder)
        yield
    finally:
        os.close(descriptor)


def _without_waiting(path, flags):
    return os.open(path, flags | os.O_NONBLOCK, 0o666)  # a pipe in the place of the file is an error


def wait_for(attempt: Callable[[], Held | None], path: Path) -> Held:
    """Call `attempt`, which takes the lock at `path`, until it returns something.

    Logs that it waits. Raises TimeoutError when another process, perhaps a suspended one, keeps the lock too long.
    """
    begin, said = time.monotonic(), False
    while (held := attempt()) is None:
        waited = time.monotonic() - begin
        if waited > PATIENCE:
            problem = f"another process has held {path} for {PATIENCE:g} seconds; continue or end it"
            raise TimeoutError(errno.ETIMEDOUT, problem)
        if waited > SAY_AFTER and not said:
            log.warning("waiting for %s, which another process holds", path)
            said = True
        time.sleep(TRY_EVERY)
    return held


def _to_the_disk(file):
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that killed processes left in `folder`."""
    for path in folder.glob(".*.*.????????"):  # the temporary names of `write_atomically`
        path.unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
