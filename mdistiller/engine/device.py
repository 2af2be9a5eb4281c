"""The device of a run, and its settings for memory and determinism."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import torch
from torch import nn

from mdistiller.errors import RunError, UserError, first_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 30
# in a RuntimeError of the CPU, of CUDA's driver and of MPS; "buffer": a single tensor that is too large for MPS
WANTING = ("can't allocate memory", "out of memory", "Invalid buffer size")


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of this name. "auto" chooses CUDA if available, else MPS, else the CPU.

    Raises UserError when the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device).item()  # fails here if the device cannot allocate or compute
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collective operations use the current device
    except (RuntimeError, AssertionError, ImportError) as error:  # the last: of a device that comes with a library
        raise UserError(f"DEVICE: {name!r} cannot be used here ({first_line(error)}); try auto") from None
    return device


@contextlib.contextmanager
def out_of_memory_fails_the_run() -> Iterator[None]:
    """Context that turns an out-of-memory error into a RunError with the settings that reduce memory use."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        of_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
        if isinstance(error, RunError) or not of_memory and not any(words in str(error) for words in WANTING):
            raise  # a RunError has advice of its own
        reason = first_line(error, kind=False)
        raise RunError(f"out of memory ({reason}); smaller batches need less (SOLVER.BATCH_SIZE with "
                       "SOLVER.ACCUMULATE, DATASET.TEST.BATCH_SIZE)") from error


def keep_freed_memory() -> bool:
    """Tell glibc to reuse the memory of freed tensors; returns whether this was possible (only with glibc).

    Every step frees feature maps of many megabytes and allocates the same sizes again. By default glibc returns them to
    the operating system, which must clear every page again; this costs about a tenth of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, KEPT_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def place(network: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Move a network to the device; `channels_last` chooses this memory format (faster convolutions)."""
    return network.to(device=device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def set_determinism(enabled: bool, compiles: bool = False) -> None:
    """Use deterministic kernels where they exist; if not `enabled`, let cuDNN search for the fastest ones.

    The compiler is told only if networks are compiled, because importing it takes two seconds.

    In deterministic mode PyTorch also fills new tensors with NaN. This is disabled: no code here reads uninitialised
    memory, and filling costs a tenth of a small network's step on a CPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not enabled
    torch.backends.cudnn.deterministic = enabled
    if compiles:
        torch.use_deterministic_algorithms(enabled, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if enabled else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False
