"""Checks of a checkpoint file before it is read: files that would take excessive time or memory are refused."""

import os
import pickletools
import re
import zipfile
from pathlib import Path

from mdistiller.errors import first_line
from mdistiller.files import open_plain

INFLATION = 8  # largest allowed ratio of unpacked size to file size; PyTorch itself does not compress
SMALL = 64 << 20  # bytes; an unpacked size up to this is always allowed
MAX_PICKLE = 256 << 20  # bytes of a pickle, which describes the tensors but does not contain their data
MAX_OBJECTS = 10**8  # objects in a pickle; an object that is referenced twice counts twice
LEGACY_PICKLES = 5  # PyTorch before 1.6: magic number, protocol, system, content, names of the storages
ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")  # first bytes of gzip, bzip2, xz, 7z
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def check_file(path: str | Path) -> None:
    """Raise BadZipFile or ValueError for a checkpoint that is damaged or dangerous to read.

    A zip file may not unpack to more than INFLATION times its size, and its CRC-32 checksums must be right (PyTorch
    does not compare them). Its pickle, or the pickles of the older format without zip, may not stand for more than
    MAX_OBJECTS objects, each counted as often as it is referenced: hashing nested tuples visits all of them.
    """
    whole = zipfile.is_zipfile(path)  # the directory of a zip is its end
    with open_plain(path) as file:
        _check_kind(file.read(512), whole)
        if not whole:
            file.seek(0)
            return _check_legacy(file)
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        total = sum(member.file_size for member in members)
        if total > max(INFLATION * os.path.getsize(path), SMALL):
            raise ValueError(f"it would inflate to {total} bytes: refused")
        damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged: wrong CRC-32 of {damaged}")
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if not pickles:
            raise ValueError("it is an archive without the data.pkl of a checkpoint; unpack it")
        for member in pickles:
            if member.file_size > MAX_PICKLE:
                raise ValueError(f"its {member.filename} has {member.file_size} bytes: refused")
            count_objects(file.read(member))


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as one of safetensors: the length of a JSON object (8 bytes), and the object."""
    with open_plain(path) as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path)


def _check_kind(head, whole):
    """Raise ValueError if the first bytes of a file belong to something else that people download or copy."""
    kinds = {
        "it is a web page, perhaps of a failed download; download the file again": head.lstrip().startswith(b"<"),
        "it is a pointer of Git LFS; git lfs pull fetches the file":
            head.startswith(b"version ") and b"git-lfs" in head,
        "it is an archive; unpack it, or give it to tools/fetch_teachers.py with --from":
            head.startswith(ARCHIVES) or head[257:262] == b"ustar",
        "it is incomplete; copy or download it again": not head or head.startswith(b"PK\x03\x04") and not whole,
    }
    for words, found in kinds.items():
        if found:
            raise ValueError(words)


def _check_legacy(file):
    for _ in range(LEGACY_PICKLES):
        try:
            count_objects(file)
        except (ValueError, IndexError, KeyError) as error:
            if isinstance(error, TooManyObjects):
                raise
            return  # not a pickle; torch.load raises a better message


class TooManyObjects(ValueError):
    """A small pickle file that stands for too many objects."""


def count_objects(pickle) -> int:
    """Number of objects that a pickle (bytes, or a file at its current position) stands for.

    An object counts as often as it is referenced. The opcodes are followed with a stack of counts; no object is built.
    Raises TooManyObjects above MAX_OBJECTS, and ValueError, IndexError or KeyError for content that is not a pickle.
    Time is linear in the length of the pickle.
    """
    stack, memo = [], {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            break
        else:
            _follow(opcode, stack)
    return stack[-1][0] if stack else 0


def _follow(opcode, stack):
    """Apply one opcode to the stack of counts. A count is a list of one number, so that a container that grows after it
    was stored in the memo also grows there."""
    taken, before = [], list(opcode.stack_before)
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    if not opcode.stack_after:
        return
    total = 1 + sum(item[0] for item in taken)
    if total > MAX_OBJECTS:
        raise TooManyObjects(f"its pickle stands for more than {MAX_OBJECTS} objects: refused")
    if opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
        container = taken[-1]
        container[0] = total
        stack.append(container)
    else:
        stack.extend([total] for _ in opcode.stack_after)


def reason_of(error: Exception) -> str:
    """A short reason why PyTorch does not read a file, without PyTorch's advice to read it unsafely."""
    text = ESCAPES.sub("", str(error)).strip()
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found and found[1].startswith("numpy."):
        return "it holds a NumPy array or object; save tensors, as torch.from_numpy makes them"
    if found and "Weights only" in text:
        return f"it holds a whole model or another Python object, {found[1]}; save the model's state_dict()"
    if "TorchScript" in text:
        return "it holds a whole model as TorchScript; save the model's state_dict()"
    if "Weights only" in text:
        found = re.search(r"WeightsUnpickler error:\s*(.+)", text) or re.search(r"Please file an issue.*?\n(.+)", text)
        text = found[1] if found else "it holds objects other than tensors and numbers"
    if "Unsupported operand" in text or isinstance(error, IndexError):  # of the stack of a pickle
        text = "it was not written by torch.save"
    return first_line(text or type(error).__name__, kind=False)
