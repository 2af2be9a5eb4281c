"""Append-only file of logits by entry number, safe under concurrent writers and crashes.

A store is a folder:

    metadata.json what the entries are and how they were computed; written last when a store is created
    logits.bin    records of C values and a checksum, in the order in which they were appended. The file has its full
                  length from the start, but is sparse: records that are not written yet use no disk space
    entries.bin   the entry number of each record, int32; the length of this file gives the number of records
    lock          locked by the process that appends

A record is appended under the lock: first its values, then its entry number. If the process is killed between the two,
no reader has seen the values, and the next record overwrites them. If the machine loses power after the entry number
but before the values reached the disk, or if a file is damaged, the checksum over values and entry number is wrong; the
entry then counts as missing and is appended again. Where the file system has no locks, processes that append at once
cost each other rows in the same way. Readers take no lock. The files are not mapped into memory, so that
a full disk or a truncated file causes an ordinary error instead of a SIGBUS.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import reprlib
from pathlib import Path

import numpy as np

from mdistiller import files
from mdistiller.data.hashing import random_bits
from mdistiller.errors import DISK_FAILS, RunError, UserError
from mdistiller.files import open_plain

FORMAT = 1
WORDS = {"float16": np.dtype("<u2"), "float32": np.dtype("<u4")}  # values as unsigned integers, for the checksum
ENTRY = np.dtype("<i4")
CHECKSUM_BYTES = 4
NO_RECORD = -1
VERIFY_RECORDS = 1 << 16  # records verified at a time
MAX_METADATA = 1 << 20  # bytes of metadata.json
MOST = {"num_entries": 2**31 - 1, "num_records": 2**31 - 1, "num_classes": 10**6}  # entry numbers are int32
MAX_CHUNK = 10**6
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # a store that others have filled may be used all the same
FULL = {errno.ENOSPC, errno.EDQUOT}
log = logging.getLogger("mdistiller")


def record_bytes(num_classes: int, dtype: str) -> int:
    """Size on disk of one record, in bytes."""
    return num_classes * WORDS[dtype].itemsize + CHECKSUM_BYTES


def read_metadata(folder: Path) -> dict | None:
    """The metadata of a store (its metadata.json), or None when the folder is not a store.

    Raises UserError for a store in a format of a later version.
    """
    path = folder / "metadata.json"
    try:
        with open_plain(path if path.exists() else folder / "facts.json") as file:  # the name in earlier stores
            metadata = json.loads(file.read(MAX_METADATA))
    except (OSError, ValueError, RecursionError):
        return None
    form = metadata.get("format") if isinstance(metadata, dict) else None
    if isinstance(form, int) and form > FORMAT:
        raise UserError(f"{folder}: a teacher cache of format {form}, of a later version of mdistiller; this one "
                        f"reads format {FORMAT}: use that version, or remove the folder")
    return metadata if form == FORMAT else None


def check_metadata(folder: Path, metadata: dict) -> None:
    """Raise UserError for invalid metadata of a store."""
    wrong = [name for name in ("num_entries", "num_records", "num_classes")
             if not (type(metadata.get(name)) is int and 0 < metadata[name] <= MOST[name])]
    wrong += [] if isinstance(metadata.get("dtype"), str) and metadata["dtype"] in WORDS else ["dtype"]
    wrong += [] if isinstance(metadata.get("key"), dict) else ["key"]
    chunk = metadata.get("chunk", 1)  # images of a forward pass
    wrong += [] if type(chunk) is int and 0 < chunk <= MAX_CHUNK else ["chunk"]
    if wrong:
        found = metadata.get(wrong[0])
        raise UserError(f"{folder}/metadata.json: {wrong[0]}: damaged, found {reprlib.repr(found)}; delete {folder}")


def remedy(folder: Path) -> str:
    """The end of an error message: how to delete a store."""
    return f"delete it: python tools/cache.py delete {folder}"


def disagreement(folder: Path, wrong: int, checked: int) -> UserError:
    """The error for `wrong` of `checked` stored rows that differ from the teacher's."""
    return UserError(f"{folder}: {wrong} of {checked} stored rows differ from the teacher's; {remedy(folder)}")


def summary(lookups: int, misses: int, stored: int) -> str:
    """One line about `lookups` rows that a process has read, of which `misses` had to be computed."""
    hits = 100 * (1 - misses / max(lookups, 1))
    return f"{hits:.1f} % of {lookups} rows were found, {misses} computed; {stored} are stored"


def say_unwritable(folder: Path) -> None:
    """Log that a store is read, but does not grow."""
    log.warning("teacher cache: %s cannot be written to: rows that are missing are not stored", folder)


def unusable(folder: Path, error: Exception) -> UserError | RunError:
    """The error for a store that cannot be opened or made: a RunError for a full, failing or read-only disk."""
    disk = isinstance(error, RunError) or getattr(error, "errno", None) in DISK_FAILS
    return (RunError if disk else UserError)(f"TEACHER_CACHE.DIR: {folder} cannot be used: {error}")


class LogitStore:
    """Rows of C values, float16 or float32, by entry number 0..num_entries-1 (see the module's docstring)."""

    words = ""  # about the content, for a line that describes the store

    def __init__(self, folder: Path, metadata: dict, part: bool = False):
        """Open the store in `folder`, or create it.

        `metadata`: num_entries, num_records (the largest possible number of records), num_classes, dtype and `key`. If
        a `part` of a larger store cannot be created, because the disk is full or read-only, it is opened as an empty
        store that takes no rows, and the larger store warns of it. Raises UserError when an existing store is damaged
        or has another `key`, and the error of `unusable`.
        """
        self.folder = Path(folder)
        check_metadata(self.folder, metadata)
        self.word, self.value = WORDS[metadata["dtype"]], np.dtype(metadata["dtype"]).newbyteorder("<")
        self.num_classes, self.num_records = metadata["num_classes"], metadata["num_records"]
        self.bytes = record_bytes(self.num_classes, metadata["dtype"])
        self.coefficients = random_bits(FORMAT, 0, 0, np.arange(self.num_classes + 1))[:, 0] | np.uint64(1)
        self.count = 0  # records known to this process
        self.writable = True
        try:
            self.index = np.full(metadata["num_entries"], NO_RECORD, ENTRY)  # entry number -> record number
            self._open(metadata, part)
            self.catch_up()
        except (OSError, RunError, MemoryError) as error:
            raise unusable(self.folder, error) from error

    def _open(self, metadata, part):
        """Open the files, only for reading if this process cannot change the store."""
        paths = [self.folder / name for name in ("logits.bin", "entries.bin")]
        self._lock = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "ab")
            with self._locked():
                self.metadata = read_metadata(self.folder) or self._create(metadata)
        except (OSError, RunError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__  # of a file that could not be written
            self.metadata = read_metadata(self.folder)
            refused = getattr(reason, "errno", None) in (READ_ONLY | FULL if part else READ_ONLY)
            if not refused or not (part or self.metadata):
                raise
            self.writable = False
            if not part:
                say_unwritable(self.folder)
        if self.metadata is None:  # the store that could not be created
            self.metadata, paths = {"format": FORMAT, **metadata}, [os.devnull, os.devnull]
        else:
            self._check(metadata)
        self._logits, self._entries = (open(path, "r+b" if self.writable else "rb") for path in paths)

    def _create(self, metadata):
        with open(self.folder / "entries.bin", "wb"), open(self.folder / "logits.bin", "wb") as logits:
            logits.truncate(self.num_records * self.bytes)
        metadata = {"format": FORMAT, **metadata}
        files.write_text(self.folder / "metadata.json", json.dumps(metadata, indent=1))
        return metadata

    def _check(self, metadata):
        check_metadata(self.folder, self.metadata)
        other = [name for name in metadata["key"] if self.metadata.get("key", {}).get(name) != metadata["key"][name]]
        size = (self.folder / "logits.bin").stat().st_size
        if other:
            raise UserError(f"{self.folder}: holds logits of another {', '.join(other)}; {remedy(self.folder)}")
        if size != self.num_records * self.bytes:
            expected = self.num_records * self.bytes
            raise UserError(f"{self.folder}/logits.bin: {size} bytes, expected {expected}; {remedy(self.folder)}")

    def close(self) -> None:
        """Close the files; the store cannot be used any more."""
        for file in filter(None, (self._logits, self._entries, self._lock)):
            file.close()

    @contextlib.contextmanager
    def _locked(self):
        path = self.folder / "lock"
        files.wait_for(lambda: files.taken(self._lock, path) or None, path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    # --- reading ---------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the entry numbers of records that other processes have appended."""
        size = os.fstat(self._entries.fileno()).st_size // ENTRY.itemsize
        if size > self.count:
            data = os.pread(self._entries.fileno(), (size - self.count) * ENTRY.itemsize, self.count * ENTRY.itemsize)
            self._learn(np.frombuffer(data[: len(data) // ENTRY.itemsize * ENTRY.itemsize], ENTRY))

    def _learn(self, entries):
        sound = (entries >= 0) & (entries < len(self.index))
        self.index[entries[sound]] = np.arange(self.count, self.count + len(entries), dtype=ENTRY)[sound]
        self.count += len(entries)

    def read(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n, C) of entries (n,), zeros for missing ones, and which of them exist, (n,) bool."""
        self.catch_up()
        values = np.zeros((len(entries), self.num_classes), self.value)
        places = np.flatnonzero(self.index[entries] != NO_RECORD)
        rows = self._rows(self.index[entries[places]])
        right = self._sound(rows, entries[places])
        if not right.all():
            self.index[entries[places[~right]]] = NO_RECORD  # so that they are appended again
            places, rows = places[right], rows[right]
        values[places] = rows[:, : self.num_classes].view(self.value)
        found = np.zeros(len(entries), bool)
        found[places] = True
        return values, found

    def _rows(self, records):
        """Values and checksums of records (n,): (n, words), zeros beyond the end of the file."""
        rows = np.zeros((len(records), self.bytes), np.uint8)
        for row, record in zip(rows, records.tolist(), strict=True):
            data = os.pread(self._logits.fileno(), self.bytes, record * self.bytes)
            row[: len(data)] = np.frombuffer(data, np.uint8)
        return rows.view(self.word)

    @property
    def num_held(self) -> int:
        """The number of entries that have a record."""
        return len(self.held())

    def held(self) -> np.ndarray:
        """The entry numbers that have a record, ascending."""
        self.catch_up()
        return np.flatnonzero(self.index != NO_RECORD)

    def damaged(self) -> int:
        """The number of entries with a wrong checksum; reads all records."""
        entries, number = self.held(), 0
        for first in range(0, len(entries), VERIFY_RECORDS):
            number += int((~self.read(entries[first : first + VERIFY_RECORDS])[1]).sum())
        return number

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, entries: np.ndarray, values: np.ndarray) -> None:
        """Append the values (n, C), in the store's dtype, of those entries (n,) that have no record yet.

        If the disk is full, one warning is logged and nothing more is stored.
        """
        if not self.writable:
            return
        try:
            with self._locked():
                self.catch_up()
                new = np.flatnonzero(self.index[entries] == NO_RECORD)[: self.num_records - self.count]
                self._append(entries[new].astype(ENTRY), values[new])
        except OSError as error:
            self.writable = False
            log.warning("teacher cache: %s cannot grow (%s): nothing more is stored", self.folder, error.strerror)

    def _append(self, entries, values):
        words = np.ascontiguousarray(values, self.value).view(self.word)
        sums = self._checksum(words, entries)[:, None].view(self.word)
        _write_all(self._logits, np.hstack([words, sums]), self.count * self.bytes)
        _write_all(self._entries, entries, self.count * ENTRY.itemsize)
        self._learn(entries)

    def _sound(self, rows, entries):
        sums = np.ascontiguousarray(rows[:, self.num_classes :]).view("<u4")[:, 0]
        return sums == self._checksum(rows[:, : self.num_classes], entries)

    def _checksum(self, words, entries):
        """Checksums (n,) uint32 of the values (n, C), as unsigned integers, of entries (n,).

        The upper half of a multilinear hash modulo 2**64, made odd so that a record of zeros is never valid.
        """
        total = words.astype(np.uint64) @ self.coefficients[:-1]
        total += (entries.astype(np.uint64) + np.uint64(1)) * self.coefficients[-1]
        return (total >> np.uint64(32)).astype("<u4") | np.uint32(1)


def in_range(values: np.ndarray, what: str) -> np.ndarray:
    """The values unchanged. Raises UserError when rounding to float16 made one of them infinite."""
    if values.dtype == np.float16 and np.isinf(values).any():
        raise UserError(f"TEACHER_CACHE.DTYPE: float16 cannot hold the teacher's {what} (above 65504); use float32")
    return values


def _write_all(file, array, offset):
    data = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b""
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
