"""Safe extraction of tar archives: limits on size, time and memory, and no file outside the target folder."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from mdistiller.errors import DISK_FAILS, UserError, cannot_write
from mdistiller.files import open_plain

MAX_BYTES = 4 << 30  # of the unpacked files
MAX_MEMBERS = 10_000
MAX_HEADER = 1 << 20  # bytes that a member's header may read at once
MAX_HEADERS = 256 << 20  # bytes of all headers
MAX_DEPTH = 32  # folders within folders
MAX_NAME = 1000  # characters
MAX_DICTIONARY = 256 << 20  # bytes of memory that an xz file may need
# Python before 3.11.4 (Debian 12 has one) has no filters; `_check_member` already refuses what "data" refuses.
SAFELY = {"set_attrs": False} | ({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
DAMAGED = (
    tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError, RecursionError,
    MemoryError,
)


def extract(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpack a tar archive into an empty folder: only regular files and folders, without their times and owners.

    Raises UserError for a damaged archive, for names outside the folder, for links and devices, and for more than
    `max_bytes` of content; RunError when the disk is full. After an error `folder` may contain some of the files.
    """
    total = 0
    try:
        with open_plain(archive) as file, tarfile.open(fileobj=_Bounded(file, max_bytes), mode="r:") as tar:
            for count, member in enumerate(tar, start=1):
                _check_member(archive, member)
                total += member.size
                if total > max_bytes or count > MAX_MEMBERS:
                    raise UserError(f"{archive}: more than {max_bytes} bytes or {MAX_MEMBERS} files: refused")
                tar.extract(member, folder, **SAFELY)
    except UserError:
        raise
    except getattr(tarfile, "FilterError", ()) as error:
        raise UserError(f"{archive}: refused: {error}") from None
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in DISK_FAILS:
            raise cannot_write(folder, error) from None
        reason = str(error)[:200] or type(error).__name__
        raise UserError(f"{archive}: not a complete tar archive ({reason}): download it again") from None


class _Bounded:
    """A tar file, perhaps compressed, with limits on the size of one read and on the total number of bytes.

    tarfile copies contents in small pieces; only an extended header is read at once.
    """

    def __init__(self, file, max_bytes):
        self.file = _decompressed(file)
        self.most = max_bytes + MAX_HEADERS

    def read(self, size=-1):
        if size < 0 or size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER} bytes")
        return self.file.read(size)

    def seek(self, place, whence=0):
        if place > self.most:
            raise tarfile.ReadError(f"more than {self.most} bytes")
        return self.file.seek(place, whence)

    def tell(self):
        return self.file.tell()


def _decompressed(file):
    head = file.read(MAX_HEADER)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ\0"):
        lzma.LZMADecompressor(memlimit=MAX_DICTIONARY).decompress(head, max_length=1)
        return lzma.LZMAFile(file)
    return file


def _check_member(archive, member):
    name = PurePosixPath(member.name)
    shown = repr(member.name[:200])
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UserError(f"{archive}: {shown} is neither a file nor a folder: refused")
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise UserError(f"{archive}: {shown} leads outside the folder: refused")
    if len(name.parts) > MAX_DEPTH or len(member.name) > MAX_NAME:
        raise UserError(f"{archive}: {shown}... is too long, or in too many folders: refused")
