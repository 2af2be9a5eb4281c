"""Checkpoint files examined before they are read: what would take no end of time or memory is refused."""

import os
import pickletools
import re
import zipfile
from pathlib import Path

from mdistiller.files import open_plain

INFLATION = 8  # times its size on disk that a file may inflate to; PyTorch itself does not compress
SMALL = 64 << 20  # bytes to which any file may inflate
MAX_PICKLE = 256 << 20  # bytes of a pickle, which names the tensors and does not hold them
MAX_OBJECTS = 10**8  # of a pickle, objects that are referred to twice counted twice
LEGACY_PICKLES = 5  # PyTorch before 1.6: magic number, protocol, system, content, names of the storages
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def check_file(path: str | Path) -> None:
    """Raise BadZipFile, or ValueError, for a checkpoint whose reading would not end well.

    The sums of a zip file are compared, which PyTorch does not do, after its size: it may not inflate to more than
    eight times what it is. Its pickle, or those of the format before zip files, may not hold more than 10^8 objects
    when each is counted as often as it is reached: hashing a tuple of tuples visits all of them.
    """
    if not zipfile.is_zipfile(path):
        with open_plain(path) as file:
            _check_legacy(file)
        return
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        total = sum(member.file_size for member in members)
        if total > max(INFLATION * os.path.getsize(path), SMALL):
            raise ValueError(f"it would inflate to {total} bytes: refused")
        damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged: the CRC-32 of {damaged} is another")
        for member in members:
            if member.filename.endswith("data.pkl"):
                if member.file_size > MAX_PICKLE:
                    raise ValueError(f"its {member.filename} has {member.file_size} bytes: refused")
                count_objects(file.read(member))


def _check_legacy(file):
    for _ in range(LEGACY_PICKLES):
        try:
            count_objects(file)
        except (ValueError, IndexError, KeyError) as error:
            if isinstance(error, TooManyObjects):
                raise
            return  # no pickle, which the reader itself says in better words


class TooManyObjects(ValueError):
    """A pickle that is small as a file and endless as an object."""


def count_objects(pickle) -> int:
    """How many objects a pickle (bytes, or a file at its place) makes, those that are referred to again counted again.

    Follows the opcodes without making anything: a stack of counts in place of objects. Raises TooManyObjects above
    MAX_OBJECTS, and ValueError, IndexError or KeyError for what is no pickle. Time is linear in the pickle's length.
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
    """Replace what an opcode takes from the stack by what it leaves there. A count is a list of one number, so that a
    container that grows after it was remembered has grown in the memory too."""
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
    """Why PyTorch does not read a file, in a few words: without its advice how to read it unsafely."""
    text = ESCAPES.sub("", str(error)).strip()
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found and "Weights only" in text:
        return f"it holds a whole model or another Python object, {found[1]}; save the model's state_dict()"
    if "TorchScript" in text:
        return "it holds a whole model as TorchScript; save the model's state_dict()"
    if "Weights only" in text:
        found = re.search(r"WeightsUnpickler error:\s*(.+)", text) or re.search(r"Please file an issue.*?\n(.+)", text)
        text = found[1] if found else "it holds other things than tensors and numbers"
    return (text.splitlines() or [type(error).__name__])[0][:200]
