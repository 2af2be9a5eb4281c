"""Communication between the processes of a run that torchrun started; everything works with one process too."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: str = "auto") -> int:
    """Join the process group of torchrun (NCCL on GPUs, gloo with `device` "cpu"), and return the local rank.

    Without torchrun there is no process group, and the rank is 0.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device != "cpu" and torch.cuda.is_available() else "gloo")
    return int(os.environ.get("LOCAL_RANK", 0))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def part_on_this_machine(number: int) -> range:
    """The numbers below `number` that this process does, where the processes of each machine divide a work."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1
    return range(int(os.environ.get("LOCAL_RANK", 0)) % processes, number, processes)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor (itself with one process)."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is True on any rank; waits for all ranks."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


def gather(value: Any) -> list[Any]:
    """The value of every rank, in order of rank, of any type that can be pickled; waits for all ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share_buffers(*modules: nn.Module) -> None:
    """Copy the buffers of rank 0, such as running statistics of batch norms, to all ranks.

    NCCL copies nothing on the CPU; what is there beside a network on a GPU are counters, equal on all ranks.
    """
    if world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        for buffer in (buffer for module in modules for buffer in module.buffers()):
            if not (on_gpu and buffer.is_cpu):
                dist.broadcast(buffer, 0)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def wrap(distiller: nn.Module, device: torch.device, averages: bool = True) -> nn.Module:
    """The distiller in DistributedDataParallel if there are several processes; the teacher is not part of it.

    Without `averages` the distiller itself, because the updater averages gradients over the processes. SOLVER.SYNC_BN
    applies to both.
    """
    if world_size() == 1:
        return distiller
    if distiller.cfg.SOLVER.SYNC_BN and device.type == "cuda":
        distiller = nn.SyncBatchNorm.convert_sync_batchnorm(distiller)
    if not averages:
        return distiller
    own = [name for name, _ in distiller.named_buffers() if name.startswith(distiller.own_buffers)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(distiller, own)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        distiller, device_ids=ids, find_unused_parameters=distiller.varying_modules
    )
