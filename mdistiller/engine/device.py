"""Where a run computes, and in which precision."""

import contextlib
import ctypes
import os
import platform

import torch
from torch import nn

from mdistiller.errors import RunError, UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 30
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """"auto" is CUDA, else MPS, else CPU; any other name is PyTorch's. Raises UserError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device).item()  # it has memory, and gives numbers back
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collectives go through the current device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"DEVICE: {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto") from None
    return device


@contextlib.contextmanager
def out_of_memory_fails_the_run():
    """What PyTorch and Python raise when memory runs out becomes a RunError that says what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        wanting = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not wanting:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"out of memory ({reason}); smaller batches need less (SOLVER.BATCH_SIZE with "
                       "SOLVER.ACCUMULATE, DATASET.TEST.BATCH_SIZE)") from error


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones; returns whether it could (glibc alone).

    Every step frees maps of many megabytes and asks for the same again. glibc gives them back to the system, which
    then clears each page anew: some tenth of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, KEPT_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def autocast(device: torch.device, amp: str):
    """The autocast context of SOLVER.AMP (none, bf16, fp16) for the networks; losses leave it again."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp])


def place(network: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The network on the device, its convolutions in channels-last order when asked (the same numbers, faster)."""
    return network.to(device=device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def set_determinism(enabled: bool) -> None:
    """Deterministic kernels wherever the device has them; otherwise let cuDNN search for the fastest ones.

    PyTorch would also fill every new tensor with NaN then, so that a program which reads memory it never wrote does so
    reproducibly. None does here, and it costs a tenth of a small network's step on a CPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not enabled
    torch.backends.cudnn.deterministic = enabled
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
