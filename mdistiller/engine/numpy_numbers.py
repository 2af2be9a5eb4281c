"""NumPy's numbers in a checkpoint, such as a best accuracy: read as Python's numbers, without NumPy's own unpickling.

`torch.load` with `weights_only` refuses them. Allowing NumPy's own functions would let a file change the flags of a
dtype, and so have any bytes taken for pointers; the two stand-ins here only know how numbers are written.
"""

import contextlib
import pickle
import re

import numpy as np
import torch

NUMBERS = re.compile(r"[biuf]\d{1,2}")  # boolean, integer, unsigned and floating-point dtypes, as NumPy pickles them


class _Dtype:
    """Stands for `numpy.dtype` of numbers; any other dtype raises UnpicklingError."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds a NumPy value of dtype {str(code)[:20]}, which is no number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar():
    """Stands for NumPy's function that unpickles a scalar; returns Python's number."""
    return lambda kind, content: np.frombuffer(content, kind.dtype, count=1).item()


def _named(name, thing):
    """The thing under the name by which `torch.load` looks it up."""
    thing.__module__, _, thing.__qualname__ = name.rpartition(".")
    thing.__name__ = thing.__qualname__
    return thing


STAND_INS = [_named("numpy.dtype", _Dtype), _named("numpy.core.multiarray.scalar", _scalar()),
             _named("numpy._core.multiarray.scalar", _scalar())]  # before and since NumPy 2


def numbers_allowed() -> contextlib.AbstractContextManager:
    """Context in which `torch.load` reads NumPy's numbers (not arrays); without effect before PyTorch 2.5."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return allow(STAND_INS) if allow else contextlib.nullcontext()
