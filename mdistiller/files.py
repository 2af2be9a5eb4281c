"""Files that are written whole or not at all, and their hashes. Imports no library but Python's own."""

import errno
import fcntl
import hashlib
import io
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from mdistiller.errors import RunError, cannot_write, writing

log = logging.getLogger("mdistiller")
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8; otherwise as `write_atomically`."""
    write_atomically(Path(path), lambda file: file.write(text.encode()))


def write_atomically(path: Path, write, keep: Path | None = None) -> None:
    """Call `write(binary file)` on a temporary file, then rename it: `path` always holds a whole file.

    What stood under the name is first renamed to `keep`, if given. Raises RunError when the disk is full or read-only,
    UserError where no file can be; what stood under both names is then untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            _to_the_disk(file)
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private; ours are ordinary
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # so PyTorch's zip writer reports a full disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown"
        if "unexpected pos" in reason or "file write failed" in reason:
            reason = "No space left on device, or a limit on the size of files"
        raise RunError(f"{path}: cannot be written: {reason}") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def open_plain(path: str | Path) -> BinaryIO:
    """A file, open to be read. Raises OSError when there is none, and for a pipe or a device, which might never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return open(path, "rb")


def lock(path: Path, inherited: bool = True) -> io.TextIOBase | None:
    """An open file with a lock on it, held until the file is closed or the process ends; None if another has it.

    With `inherited`, processes that are forked meanwhile hold the lock too, and it lasts until the last of them ends.
    Where the file system has no locks (Lustre without `-o flock`, some network drives), the file is open and unlocked.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
    try:
        (fcntl.flock if inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            return None
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks; do not start two runs in one folder", path)
    return file


def _to_the_disk(file):
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system that cannot be asked
            raise


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process has left of files that it was writing into `folder`."""
    for path in folder.glob(".*.*.????????"):  # the names that `write_atomically` gives
        path.unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
