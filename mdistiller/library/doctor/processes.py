"""Check that several processes train one student: a wrapper must average their gradients."""

import inspect
from collections.abc import Iterator

from torch import nn

from mdistiller import distributed
from mdistiller.library.doctor.finding import Case, Finding, many


def check_processes(case: Case) -> Iterator[Finding]:
    """A fault if one of several processes trains parameters that no DistributedDataParallel or FSDP averages.

    To be called within the step. A wrapper around the student alone averages nothing of the method's own modules; one
    that was made of `kd.student` after `distill` is not called at all.
    """
    if distributed.world_size() == 1 or _wrapped(case.kd):
        return
    import torch.distributed.fsdp as fsdp

    sharding = [getattr(fsdp, name) for name in ("FSDPModule", "FullyShardedDataParallel") if hasattr(fsdp, name)]
    averaging = nn.parallel.DistributedDataParallel, *sharding
    averaged = {
        id(parameter)
        for module in case.kd.modules()
        if isinstance(module, averaging)
        for parameter in module.parameters()
    }
    missing = [
        name
        for name, parameter in case.kd.distiller.named_parameters()
        if parameter.requires_grad and id(parameter) not in averaged
    ]
    if missing:
        yield Finding(
            "gradients not averaged",
            f"{distributed.world_size()} processes run, and nothing averages the gradients of {many(missing)}: "
            "make model = DistributedDataParallel(kd), and call model(x, y) in place of kd(x, y)",
        )


def _wrapped(kd: nn.Module) -> bool:
    """Whether a caller is a method of a wrapper around the module: DDP, FSDP, DeepSpeed hold theirs as `module`.

    PyTorch has no public function that tells whether a forward pass of DDP is under way.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        inner = getattr(caller, "module", None) if isinstance(caller, nn.Module) else None
        if isinstance(inner, nn.Module) and any(module is kd for module in inner.modules()):
            return True
        frame = frame.f_back
    return False
