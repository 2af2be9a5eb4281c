"""NumPy's numbers and arrays of numbers in the files of others, without NumPy's own unpickling.

Its functions would let a file change the flags of a dtype, and so have any bytes taken for pointers; the stand-ins here
only know how numbers are written. `torch.load` with `weights_only`, which refuses NumPy's numbers (such as a best
accuracy), reads them as Python's with these; arrays are read only from files of detectron2's model zoo.
"""

import codecs
import collections
import contextlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from mdistiller.engine.pickles import count_objects
from mdistiller.errors import UserError
from mdistiller.files import open_plain

NUMBERS = re.compile(r"[biuf]\d{1,2}")  # boolean, integer, unsigned and floating-point dtypes, as NumPy pickles them


class _Dtype:
    """Stands for `numpy.dtype` of numbers; any other dtype raises UnpicklingError."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds a NumPy value of dtype {str(code)[:20]}, which is no number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for `numpy.ndarray` of numbers."""

    def __setstate__(self, state):
        _, shape, kind, columns_first, content = state
        numbers = np.frombuffer(_bytes(content), kind.dtype).reshape(shape, order="F" if columns_first else "C")
        self.array = numbers.astype(kind.dtype.newbyteorder("="))


def _bytes(content):
    """The bytes of a number or an array; Python 2 wrote them as a text."""
    return content.encode("latin1") if isinstance(content, str) else content


def _scalar():
    """Stands for NumPy's function that unpickles a scalar; returns Python's number."""
    return lambda kind, content: np.frombuffer(_bytes(content), kind.dtype, count=1).item()


def _named(name, thing):
    """The thing under the name by which `torch.load` looks it up."""
    thing.__module__, _, thing.__qualname__ = name.rpartition(".")
    thing.__name__ = thing.__qualname__
    return thing


MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
STAND_INS = [_named("numpy.dtype", _Dtype), *(_named(f"{module}.scalar", _scalar()) for module in MULTIARRAY)]


def numbers_allowed() -> contextlib.AbstractContextManager:
    """Context in which `torch.load` reads NumPy's numbers (not arrays); without effect before PyTorch 2.5."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return allow(STAND_INS) if allow else contextlib.nullcontext()


ALLOWED = {  # all names that a pickle of plain arrays needs
    ("numpy", "dtype"): _Dtype, ("numpy", "ndarray"): _Array,
    **{(module, "_reconstruct"): lambda *_: _Array() for module in MULTIARRAY},
    **{(module, "scalar"): _scalar() for module in MULTIARRAY},
    ("_codecs", "encode"): codecs.encode, ("collections", "OrderedDict"): collections.OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, texts, numbers and arrays of numbers, and rejects everything else, in particular code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return ALLOWED[module, name]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of detectron2's model zoo, by name. Raises UserError for any other file."""
    try:
        with open_plain(path) as file:
            data = file.read()
        count_objects(data)
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        content = content.get("model", content)
        arrays = {str(name): value.array if isinstance(value, _Array) else np.asarray(value)
                  for name, value in content.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # damaged pickles raise many kinds of exceptions
        raise UserError(f"{path}: not a pickle of detectron2's arrays ({type(error).__name__}: {error})") from None
    if not arrays or any(array.dtype.kind not in "fiub" or array.itemsize > 8 for array in arrays.values()):
        raise UserError(f"{path}: not a pickle of detectron2's arrays (it contains other values than numbers)")
    return arrays
