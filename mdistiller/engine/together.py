"""Train several runs in one process, step by step, so that each batch and each pass of the teacher is made once.

`python -m mdistiller.engine.together FILE` is started by a sweep. FILE is JSON: a list of {"cfg", "opts", "command",
"record"}. The output of a run goes to `<record>.log`, and its exit code to `<record>.code` when it has ended.
"""

import contextlib
import json
import logging
import random
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mdistiller import files
from mdistiller.command import Interrupted, exit_code, run_command
from mdistiller.config import load_cfg
from mdistiller.engine.log import TEXT
from mdistiller.engine.setup import training
from mdistiller.engine.sharing import Together
from mdistiller.engine.trainer import StopRequest


@dataclass(frozen=True)
class Order:
    """A run to train: its configuration, the command that repeats it, and where its output and its exit code go."""

    cfg: str
    opts: Sequence[str]
    command: Sequence[str]
    record: str


def train_together(orders: Sequence[Order]) -> int:
    """Train the runs, each in its own folder, as far as each would come alone; returns the highest of their exit codes.

    The run that is furthest behind takes the next step, so that runs which were stopped at different steps catch up
    and then go on together. A run that fails ends alone. A signal of STOP_SIGNALS lets every run save its state.
    """
    stop, shared = StopRequest(), Together()
    members = [Member(order, shared, stop) for order in orders]
    with stop.listening():
        for member in members:
            member.go_on()
        while going := [member for member in members if member.code is None]:
            min(going, key=lambda member: member.place).go_on()
    return max(member.code for member in members)


class Member:
    """A run of the group: between its steps it keeps its random numbers, its log, and its command line."""

    def __init__(self, order: Order, shared: Together, stop: StopRequest):
        self.order, self.stop = order, stop
        self.code: int | None = None  # exit code, when the run has ended
        self.place = (0, 0)  # epoch and number of the next step
        self.over, self.handlers, self.random = False, [], random_state()
        self.log = open(f"{order.record}.log", "w", buffering=1, **TEXT)  # by lines
        self.training = self._train(shared)

    def _train(self, shared):
        cfg = load_cfg(self.order.cfg, self.order.opts)
        yield from training(cfg, resume=True, shared=shared, stop=self.stop)

    def go_on(self) -> None:
        """Build the run, at the first call, or take its next step; at its end, `code` is set and written."""
        with self._at_work():
            try:
                code = exit_code(self._next)
            except Exception:  # a bug: print the traceback, as the interpreter would
                traceback.print_exc()
                code = 1
            if code or self.over:
                self._end(code)

    def _end(self, code):
        self.training.close()
        self.code = code
        for handler in self.handlers:
            handler.close()
        self.log.close()
        files.write_text(f"{self.order.record}.code", f"{code}\n")

    def _next(self):
        if self.stop.number is not None and self.place == (0, 0):
            raise Interrupted(self.stop.number)  # nothing has begun
        try:
            self.place = next(self.training).place
        except StopIteration:
            self.over = True

    @contextlib.contextmanager
    def _at_work(self):
        """The state of the process is that of this run."""
        logger, argv = logging.getLogger("mdistiller"), sys.argv
        others, logger.handlers = logger.handlers, self.handlers
        set_random_state(self.random)
        sys.argv = list(self.order.command)  # run.json stores this command, which repeats the run
        try:
            with contextlib.redirect_stdout(self.log), contextlib.redirect_stderr(self.log):
                yield
        finally:
            sys.argv, self.random = argv, random_state()
            self.handlers, logger.handlers = logger.handlers, others


def random_state() -> tuple:
    """The state of the random numbers of Python, NumPy and PyTorch (of all CUDA devices too, if CUDA is in use)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(state: tuple) -> None:
    """Restore what `random_state` has returned."""
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


def main():
    orders = json.loads(Path(sys.argv[1]).read_text())
    return train_together([Order(**order) for order in orders])


if __name__ == "__main__":
    run_command(main)
