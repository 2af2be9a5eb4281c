"""Precision of the networks' forward passes: autocast, the meaning of SOLVER.AMP auto, the teacher's own precision."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from mdistiller.functional import HALF

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = 8  # first compute capability of NVIDIA GPUs that multiplies bf16 in hardware
SAME = "same"  # value of DISTILLER.TEACHER_AMP: the teacher runs in the precision of SOLVER.AMP


def unless_half(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change of dtype or device, as `nn.Module._apply` takes it, without its change to half precision.

    The modules of a method read features in float32, and small updates of their weights would be lost in less.
    """

    def kept(tensor):
        changed = fn(tensor)
        return tensor.to(changed.device) if changed.dtype in HALF and tensor.dtype not in HALF else changed

    return kept


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of `amp` (none, bf16, fp16), also inside of another one."""
    if amp in AMP_DTYPES:
        return torch.autocast(device.type, dtype=AMP_DTYPES[amp])
    return torch.autocast(device.type, enabled=False)


def resolved(amp: str, device: torch.device) -> str:
    """`amp`; for "auto", bf16 on a device with fast bf16 arithmetic (see `has_fast_bf16`), else none."""
    if amp != "auto":
        return amp
    return "bf16" if has_fast_bf16(device) else "none"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware: a CPU with AMX, or a GPU from Ampere on (or of AMD).

    A CPU with AVX-512's bf16 alone is faster for ordinary convolutions and slower for those in groups; others emulate
    bf16, many times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= AMPERE
    return device.type == "cpu" and lists_amx(_cpuinfo())


def lists_amx(cpuinfo: str) -> bool:
    """Whether the text of Linux's /proc/cpuinfo names AMX with bf16 among the processor's flags."""
    return any("amx_bf16" in line.split() for line in cpuinfo.splitlines() if line.startswith("flags"))


def _cpuinfo():
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # another operating system
        return ""


def teacher_amp(cfg: CfgNode) -> str:
    """The precision of the teacher's passes: DISTILLER.TEACHER_AMP, or SOLVER.AMP if that is "same"."""
    return cfg.SOLVER.AMP if cfg.DISTILLER.TEACHER_AMP == SAME else cfg.DISTILLER.TEACHER_AMP


def teachers_own_precision(cfg: CfgNode, device: torch.device) -> contextlib.AbstractContextManager:
    """The autocast context of DISTILLER.TEACHER_AMP around the teacher's passes; "same" keeps the surrounding one."""
    if cfg.DISTILLER.TEACHER_AMP == SAME:
        return contextlib.nullcontext()
    return autocast(device, cfg.DISTILLER.TEACHER_AMP)
