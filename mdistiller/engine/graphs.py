"""A training step recorded as a CUDA graph: one launch from the host instead of one for each of its kernels.

Small networks at small batches are bound by these launches. What is recorded is the trainer's own step, with the same
code; only what the host decides is baked in. Therefore a graph is recorded anew in every epoch, the learning rate is a
tensor, and random numbers are set before each replay, as before each step without a graph. A step that cannot be
recorded runs as without this module, and the log says why.
"""

import collections
import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller import distributed
from mdistiller.errors import first_line

NEVER = "SOLVER.CUDA_GRAPH is never"
DOT_TRAINERS = ("dot", "crd_dot")  # values of SOLVER.TRAINER in mdistiller's files
OBSERVED_STEP = 3  # of the steps with batches of one kind: the one that is watched; graphs are recorded after it
WAITS = "called a synchronizing CUDA operation"  # how PyTorch's warning begins
log = logging.getLogger("mdistiller")


def why_eager(cfg: CfgNode, device: torch.device, varying: bool = False) -> str | None:
    """The reason why no step of a run of this config is recorded; None if steps may be (see `observed`).

    `varying` is `Distiller.varying_modules`.
    """
    solver = cfg.SOLVER
    reasons = {
        NEVER: solver.CUDA_GRAPH == "never",
        f"the device is {device.type}": device.type != "cuda",
        "several processes average their gradients": distributed.world_size() > 1,
        "SOLVER.AMP fp16 reads back whether gradients are finite": solver.AMP == "fp16",
        "SOLVER.ACCUMULATE is above 1": solver.ACCUMULATE > 1,
        "SOLVER.SKIP_NONFINITE reads every loss back": solver.SKIP_NONFINITE > 0,
        "SOLVER.EMA counts its updates on the host": solver.EMA > 0,
        f"SOLVER.TRAINER {solver.TRAINER} has an optimiser of its own": solver.TRAINER in DOT_TRAINERS,
        "COMPILE has graphs of its own": cfg.COMPILE,
        "some modules of the method are unused in some steps": varying,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def observed(compute: Callable[[dict], Any], batch: dict, state: Callable[[], dict]) -> tuple[Any, str | None]:
    """`compute(batch)`, and the reason why this step cannot be recorded and replayed, or None.

    `state()` returns the tensors that the step reads and changes: they must be changed in place. Nothing may be drawn
    from the CPU's generator, and nothing read back from the device.
    """
    places, drawn = _places(state()), torch.get_rng_state()
    with _waits(batch) as waits:
        result = compute(batch)
    moved = [name for name, place in _places(state()).items() if places.get(name) != place]
    if not torch.equal(torch.get_rng_state(), drawn):
        return result, "it draws random numbers on the CPU"
    if moved:
        return result, f"it replaces {moved[0]} by a new tensor"
    return result, "it waits for the device" if waits else None


def tensors_of(distiller: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a step reads and changes besides its batch, by a name for messages."""
    networks = {"": distiller, "the teacher's ": distiller.teacher}
    found = {f"{whose}{name}": tensor for whose, network in networks.items() if network is not None
             for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    return found | {f"the optimiser's {name} {number}": tensor for number, state in enumerate(optimizer.state.values())
                    for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _places(tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


@contextlib.contextmanager
def _waits(batch) -> Iterator[list]:
    """Collects in a list PyTorch's warnings of operations that wait for the GPU; on other devices there are none."""
    found: list = []
    if not any(tensor.is_cuda for tensor in batch.values()):
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [warning for warning in caught if WAITS in str(warning.message)]


class Recording:
    """`compute(batch)` recorded on the current stream, which must not be the default one; nothing is computed yet."""

    def __init__(self, compute: Callable[[dict], Any], batch: dict):
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # thread_local: other threads, such as those that pin memory, may use the GPU meanwhile
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.result = compute(batch)

    def replay(self) -> Any:
        """Compute what was recorded, on the present content of the batch's tensors. The next replay overwrites the
        tensors of the result."""
        self.graph.replay()
        return self.result


class RecordedSteps:
    """Takes training steps, from a recording where that is possible. With a `reason` every step is taken as it is."""

    def __init__(self, compute: Callable[[dict], Any], state: Callable[[], dict], reason: str | None = None):
        """`compute` is the step: it maps a batch to measurements.

        `state()` names all tensors that the step reads and changes besides the batch.
        """
        self.compute, self.state, self.reason = compute, state, reason
        self.stream = self.recording = self.epoch = self.kind = None
        self.said = reason == NEVER
        self.seen: collections.Counter = collections.Counter()  # kind of batch -> steps taken without a recording

    def __call__(self, epoch: int, batch: dict) -> Any:
        """Take the step for a batch; returns its measurements, valid until the next call."""
        only_tensors = all(isinstance(value, Tensor) for value in batch.values())
        if self.reason is not None or not only_tensors:
            self._say(self.reason or "a batch holds more than tensors")
            return self.compute(batch)
        kind = tuple((name, tensor.shape, tensor.dtype, tensor.stride()) for name, tensor in batch.items())
        with self._own_stream(next(iter(batch.values())).device):
            if epoch != self.epoch:
                self.recording = None
            if self.recording is None and self.seen[kind] >= OBSERVED_STEP:
                self._record(epoch, kind, batch)
            if self.recording is not None and kind == self.kind:
                for name, tensor in self.batch.items():
                    tensor.copy_(batch[name])
                return self.recording.replay()
            return self._as_it_is(kind, batch)

    def _say(self, reason):
        if not self.said:
            log.info("the training step is not recorded as a CUDA graph: %s", reason)
        self.said = True

    def _as_it_is(self, kind, batch):
        self.seen[kind] += 1
        if self.seen[kind] != OBSERVED_STEP:
            return self.compute(batch)
        result, self.reason = observed(self.compute, batch, self.state)
        if self.reason is not None:
            self._say(self.reason)
        return result

    def _record(self, epoch, kind, batch):
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        try:
            self.recording = Recording(self.compute, self.batch)
        except RuntimeError as error:  # nothing was computed yet, so the step can still be taken as it is
            self.reason, self.said = f"recording it failed ({first_line(error)})", False
            self._say(self.reason)
            return
        if self.epoch is None:
            log.info("the training step is recorded as a CUDA graph once an epoch")
        self.epoch, self.kind = epoch, kind

    @contextlib.contextmanager
    def _own_stream(self, device):
        """Steps run on a stream of their own, recorded or not: backward passes remember the stream of their weights."""
        if device.type != "cuda":
            yield
            return
        self.stream = self.stream or torch.cuda.Stream(device)
        around = torch.cuda.current_stream(device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            yield
        around.wait_stream(self.stream)
