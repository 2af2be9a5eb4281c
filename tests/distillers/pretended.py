"""Takes a training step of every method on a pretended device, whose tensors are in CPU memory.

Prints {method: the first thing that a GPU would refuse or wait for, or ""} as JSON, and the same for operations of
`FAULTS`. It is a process of its own, because a device is registered for the whole process.
"""

import json
from functools import partial

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mdistiller.distillers import DISTILLERS
from tests.distillers.support import tiny_batch, tiny_distiller

WAITING = {"_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero", "unique_consecutive",
           "unique_dim"}
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


FAULTS = {
    "float64": lambda tensor: tensor.double(),
    "mask": lambda tensor: tensor[tensor > 0],
    "mixed": lambda tensor: tensor + torch.ones(4),
    "nonzero": lambda tensor: tensor.nonzero(),
    "number": lambda tensor: tensor.sum().item(),
    "to": lambda tensor: torch.tensor([1.0], device=tensor.device),
    "back": lambda tensor: tensor.cpu(),
}


class Refused(Exception):
    pass


class Waiting:
    """Whether operations that wait are refused; networks and batches are moved to the device before."""

    refused = False


class Backend:
    """What PyTorch asks of the module of a device."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        """The numbers are those of the CPU's generator."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Pretended(Tensor):
    """A tensor of the device, with its values in `inner`."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device="pretended:0")
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Makes tensors that are asked for on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def is_pretended(device):
    return device is not None and torch.device(device).type == "pretended"


def computed(function, args, kwargs):
    """The result of an operation; Refused where a GPU would wait or fail."""
    name, device = function.overloadpacket.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    if not there and not is_pretended(device):
        return function(*args, **kwargs)
    refuse(function, name, args, kwargs, tensors)
    inner = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
    inner_args, inner = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Pretended) else leaf, (args, inner))
    result = function(*inner_args, **inner)
    if device is not None and not is_pretended(device):  # a copy to the CPU
        return result
    given = {id(tensor.inner): tensor for tensor in there}  # what operations in place return

    def outer(leaf):
        return given[id(leaf)] if id(leaf) in given else Pretended(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(outer, result)


def refuse(function, name, args, kwargs, tensors):
    """Raise Refused for what waits for a device, has tensors of two, or is in float64."""
    elsewhere = [tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, Pretended)]
    copies = name in COPIES and (elsewhere or not is_pretended(kwargs.get("device", "pretended")))
    masks = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
    fills = masks and name != "index" and args[2].numel() == 1  # one value is written without waiting
    waits = name in WAITING or (masks and not fills) or (copies and not kwargs.get("non_blocking"))
    if waits and Waiting.refused:
        raise Refused(f"{function} waits for the device")
    if elsewhere and not copies:
        raise Refused(f"{function} has tensors of two devices")
    if torch.float64 in (kwargs.get("dtype"), *(tensor.dtype for tensor in tensors)):
        raise Refused(f"{function} is in float64, which Apple's GPUs do not have")


def step(name):
    Waiting.refused = False
    distiller = tiny_distiller(name, image_size=16, device="pretended")
    batch = {key: value.to("pretended") if isinstance(value, Tensor) else value
             for key, value in tiny_batch(image_size=16).items()}
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=1e-3, momentum=0.9)
    Waiting.refused = True
    with torch.autocast("pretended", dtype=torch.bfloat16):
        _, losses = distiller(**batch)
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(distiller.learnable_parameters(), 1.0)
    optimizer.step()


def main():
    backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device=...) then copies in a way that is seen
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    with Pretending():
        tensor = torch.ones(4, device="pretended")
        found = {name: refusal(partial(step, name)) for name in sorted(DISTILLERS)}
        Waiting.refused = True
        found |= {name: refusal(partial(fault, tensor)) for name, fault in FAULTS.items()}
    print(json.dumps(found))


def refusal(action):
    """The error of an action, or "" if there is none."""
    try:
        action()
        return ""
    except Exception as error:  # one method's fault must not hide another's
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
