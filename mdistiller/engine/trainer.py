"""The one trainer and its one training step."""

import contextlib
import itertools
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mdistiller import distributed
from mdistiller.command import Interrupted, say
from mdistiller.engine import checkpoints
from mdistiller.engine.graphs import RecordedSteps, tensors_of, why_eager
from mdistiller.engine.log import Scalars, epoch_line, evaluated, progress, reason
from mdistiller.engine.optim import build_updater, learning_rate
from mdistiller.engine.run_folder import RunFolder
from mdistiller.engine.run_state import LATEST, RunState
from mdistiller.engine.trace import EntropyTrace
from mdistiller.errors import NotFinite, RunError, UserError
from mdistiller.precision import autocast
from mdistiller.tasks import Task

log = logging.getLogger("mdistiller")
POLL_STEPS = 50  # steps between two readings of measurements from the device
REPEAT_SECONDS = 1.0  # within them a signal is the same request: a terminal and a launcher both send it
# HUP: the terminal was closed; USR1, USR2: sent by clusters
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's random numbers: methods that draw do so as a function of (seed, epoch, step)."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63


class StopRequest:
    """A signal that asks runs to stop, stored in `number` until their next step.

    Another one, more than REPEAT_SECONDS later, ends the process at once.
    """

    number: int | None = None
    arrived = -math.inf

    def __call__(self, number, frame=None):
        first, self.arrived = self.arrived, time.monotonic()
        if self.number is not None and self.arrived - first > REPEAT_SECONDS:  # the process may be blocked
            stop = Interrupted(number)
            say(f"interrupted by {stop} again; saved files are complete; continue with --resume", stop.exit_code)
            os._exit(stop.exit_code)
        self.number = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context the signals of STOP_SIGNALS come here, except a SIGHUP that is ignored (`nohup`)."""
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        previous = {number: signal.signal(number, self) for number in STOP_SIGNALS if number not in ignored}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Trainer:
    """Trains the distiller of a run and writes its folder; randomness in a step depends only on (seed, epoch, step)."""

    def __init__(self, run, folder: RunFolder, teacher_cache=None, after_epoch: Callable[[dict], None] | None = None,
                 stop: StopRequest | None = None):
        """`run` is a `setup.Run`; a `teacher_cache`, if given, replaces the teacher's forward passes. Runs that train
        in one process have one `stop`."""
        self.cfg, self.data, self.distiller, self.device, self.folder = (
            run.cfg, run.data, run.distiller, run.device, folder
        )
        self.task, self.splits = run.task, run.splits
        self.chosen_on = f"{self.splits[0]}_{self.task.headline}"  # with a "val" split the test set is not used
        self.teacher_cache, self.after_epoch = teacher_cache, after_epoch
        self.updater = build_updater(self.cfg, self.distiller, self.device)
        self.model = distributed.wrap(self.distiller, self.device, not self.updater.own_reduction)
        self.average = None
        if self.cfg.SOLVER.EMA:
            update = get_ema_multi_avg_fn(self.cfg.SOLVER.EMA)
            self.average = AveragedModel(self.distiller.deployed(), multi_avg_fn=update, use_buffers=True)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.first = self.rank == 0  # only this process writes files
        self.poll_steps = 1 if self.device.type == "cpu" and self.world_size == 1 else POLL_STEPS  # a CPU never waits
        self.trace = EntropyTrace(self.cfg, self.data, self.distiller, folder.path)
        self.state = RunState(run, self.updater, self.average, folder)
        reason = why_eager(self.cfg, self.device, self.distiller.varying_modules)
        reason = reason or ("runs that train together share passes" if stop else None)
        self.recorded = RecordedSteps(self._update, lambda: tensors_of(self.distiller, self.updater.optimizer), reason)
        self.stop = stop or StopRequest()
        self.warned: set[str] = set()

    epoch = property(lambda self: self.state.epoch, doc="Number of the current or next epoch, from 1.")
    step = property(lambda self: self.state.step, doc="Number of the next step of the epoch, from 0.")
    meters = property(lambda self: self.state.meters, doc="Measurements of the current epoch.")
    stop_signal = property(lambda self: self.stop.number, lambda self, number: setattr(self.stop, "number", number),
                           doc="The signal that asks this run to stop; None before there is one.")
    place = property(lambda self: (self.state.epoch, self.state.step), doc="Epoch and step, which order in time.")

    # --- running ---------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator["Trainer"]:
        """Train from the current state to the last epoch, as a generator; returns the summary.

        It yields this trainer after each step and each epoch. Between two steps, other runs may take theirs: nothing
        but the state of the process is common to them. Raises NotFinite for a non-finite loss, and Interrupted after a
        request to stop, when the state is saved.
        """
        every = self.cfg.LOG.TENSORBOARD_FREQ
        self.scalars = Scalars(self.folder.to_write("tb"), self.state.global_step, every, self.first)
        try:
            begun = self.state.global_step or (self.folder / "summary.json").is_file()
            if begun and self.epoch <= self.state.epochs:  # no longer "interrupted", or "failed" in its first epoch
                self.state.summarize("running")
            with progress(self.state.epochs, "run", self.first, initial=self.epoch - 1, unit=" epoch") as bar:
                for _ in range(self.epoch, self.state.epochs + 1):
                    yield from self._epoch()
                    results = {"last": self.state.metrics, "best": self.state.best}
                    bar.set_postfix({when: f"{of[self.chosen_on]:.2f}" for when, of in results.items()}, refresh=False)
                    bar.update()
            if self.first:
                publish(self.task, self.distiller.student, self.folder, self.cfg.DISTILLER.STUDENT)  # before it is done
            return self.state.summarize("done")
        except BaseException as error:
            with contextlib.suppress(RunError, UserError):  # a full disk must not hide the original error
                self.state.summarize("interrupted" if isinstance(error, Interrupted) else "failed", reason(error))
            raise
        finally:
            self.scalars.close()

    def _epoch(self):
        epoch, self.state.started = self.epoch, time.perf_counter()
        self.distiller.train()
        with progress(self.data.num_batches, f"epoch {epoch}/{self.state.epochs}", self.first) as bar:
            bar.update(self.step)
            for batch in self.batches():
                self._step(batch)
                bar.update()
                if self.step % self.poll_steps == 0:
                    self._poll(bar)
                if self._due(self.poll_steps) and self._asked_to_stop():
                    self._stop()
                if self._due(self.cfg.LOG.SAVE_CHECKPOINT_STEPS):
                    self._check_losses()
                    self.state.save(LATEST)
                yield from self._pause()
        self._check_losses()
        self._show_step()
        self._warn()
        samples, seconds = self.meters.samples(), self.state.epoch_seconds
        record = {"epoch": epoch, "lr": learning_rate(self.cfg.SOLVER, epoch, 0, self.data.num_batches)}
        record |= self.meters.epoch_values()
        record |= {"seconds": seconds, f"{self.task.unit}_per_second": samples / seconds}
        if self._asked_to_stop():
            self._stop()
        record |= self._evaluate()
        self.state.wall_seconds += self.state.epoch_seconds
        self._finish_epoch(record)
        yield self

    def _pause(self):
        """Let other runs of the process take a step; their time is not counted as this run's.

        A signal that arrived meanwhile stops this run before its next step.
        """
        left = time.perf_counter()
        yield self
        self.state.started += time.perf_counter() - left
        if self.stop_signal is not None and self.world_size == 1 and self._between_updates():
            self._stop()

    def batches(self) -> Iterator[dict]:
        """The remaining batches of the epoch, with the teacher's stored outputs if there is a cache."""
        place = {"start": self.step, "rank": self.rank, "world_size": self.world_size}
        batches = self.data.train_batches(self.epoch, views=self.distiller.views, **place)
        if self.teacher_cache is None:
            return batches
        return self.teacher_cache.attach(batches, self.epoch, **place)

    def _step(self, batch):
        """The one training step: forward, losses, backward, update; no value is read back from the device."""
        torch.manual_seed(step_seed(self.cfg.EXPERIMENT.SEED, self.epoch, self.step))
        self.updater.set_learning_rate(learning_rate(self.cfg.SOLVER, self.epoch, self.step, self.data.num_batches))
        measured = self.recorded(self.epoch, batch)
        if measured is not None:
            self.meters.write(self.step, *measured)
        self.state.step += 1

    def _update(self, batch):
        """What a step does on the device: (its row of `meters`, number of samples); None if it is skipped."""
        solver, total, step = self.cfg.SOLVER, self.data.num_batches, self.step
        share = batch.pop("share", 1.0)  # the batch's part of the samples of the update
        with autocast(self.device, solver.AMP):
            logits, losses = self.model(epoch=self.epoch, **batch)
        if solver.SKIP_NONFINITE and self._skip_nonfinite(losses):
            return None
        scaled = losses if share == 1.0 else {name: share * loss for name, loss in losses.items()}
        last = step % solver.ACCUMULATE == solver.ACCUMULATE - 1 or step == total - 1
        self.updater.step(scaled, first=step % solver.ACCUMULATE == 0, last=last)
        if self.average is not None and last:
            self.average.update_parameters(self.distiller.deployed())
        distiller, samples = self.distiller, len(logits)
        return self.meters.row(losses, samples, distiller.progress, distiller.monitor, self.task.parts), samples

    def _skip_nonfinite(self, losses):
        """Whether to skip the update because the loss is not finite on some rank (at most SKIP_NONFINITE times)."""
        if self.meters.rows is None and self.step == self.data.num_batches - 1:
            return False  # at least one step of an epoch must have measurements
        state, allowed = self.state, self.cfg.SOLVER.SKIP_NONFINITE
        bad = not bool(torch.isfinite(sum(loss.detach() for loss in losses.values())))
        if state.skipped >= allowed or not distributed.any_rank(bad, self.device):
            return False
        state.skipped += 1
        log.warning("epoch %d, step %d: the loss is not finite: step skipped (%d of SOLVER.SKIP_NONFINITE %d)",
                    state.epoch, state.step + 1, state.skipped, allowed)
        return True

    def _check_losses(self):
        """Raise RunError for the first non-finite loss; nonfinite.pt then lists the samples of its batch."""
        found = self.meters.first_nonfinite(self.step - 1)
        if found is None:
            return
        step, terms = found
        method, path = self.cfg.DISTILLER.TYPE, self.folder / "nonfinite.pt"
        index = torch.from_numpy(self.data.batch_index(self.epoch, step))
        content = {"method": method, "terms": terms, "epoch": self.epoch, "step": step + 1, "index": index}
        words = f"the indices of its training {self.data.items} are in {path}"
        try:
            if self.first:
                checkpoints.save(content, self.folder.to_write(path.name))
        except RunError as error:
            words = str(error)
        raise NotFinite(
            f"{method}: loss {', '.join(terms)} is not finite at epoch {self.epoch}, step {step + 1}; {words}; "
            "files saved before are intact (a lower SOLVER.LR or distillation weight may help)"
        )

    def _warn(self):
        """Warn once, after an epoch, of losses that were always 0 and of parameters without gradients."""
        idle = idle_parts(self.distiller, self.meters.zero_losses(), self.updater.optimizer.state)
        for words in idle:
            if words not in self.warned:
                log.warning("%s: %s", self.cfg.DISTILLER.TYPE, words)
        self.warned.update(idle)

    def _poll(self, bar):
        """Read the measurements so far: check the losses, update progress bar and TensorBoard."""
        self._check_losses()
        if not bar.disable and self.meters.rows is not None:
            rate = self.meters.counts.sum().item() / self.state.epoch_seconds
            bar.set_postfix({f"{self.task.unit}/s": f"{rate:.0f}"},
                            loss=f"{sum(self.meters.losses(self.step - 1).values()):.3f}")
        self._show_step()

    def _show_step(self):
        if self.meters.rows is not None:
            self.scalars.add_step(self.state.global_step, lambda: self.meters.losses(self.step - 1))

    def _between_updates(self):
        """Whether a run can resume from the current state within the epoch: no gradients are accumulated."""
        return self.step % self.cfg.SOLVER.ACCUMULATE == 0 and self.step < self.data.num_batches

    def _due(self, steps):
        """Whether a multiple of `steps` steps was reached since the last point between two updates, and this is one."""
        return bool(steps) and self._between_updates() and self.step % steps < self.cfg.SOLVER.ACCUMULATE

    def _asked_to_stop(self):
        """Whether any process was asked to stop; all processes must call this."""
        return distributed.any_rank(self.stop_signal is not None, self.device)

    def _stop(self):
        self._check_losses()
        self.state.save(LATEST)
        raise Interrupted(self.stop_signal or signal.SIGTERM)

    def _evaluate(self):
        distributed.share_buffers(self.distiller, *([self.average] if self.average is not None else []))
        self.distiller.eval()
        averaged = {} if self.average is None else {"_ema": self.average.module.eval()}
        networks = {"": self.distiller.deployed().eval()} | averaged
        record, begun = {}, time.perf_counter()

        def batches(split):
            for batch in evaluated(self.data, split, self.rank, self.world_size):
                if self.stop_signal is not None and self.world_size == 1:  # several ranks have batches of their own
                    self.state.started += time.perf_counter() - begun  # the resumed run repeats the evaluation
                    self._stop()
                yield batch

        for split, (suffix, network) in itertools.product(self.splits, networks.items()):
            with autocast(self.device, self.cfg.SOLVER.AMP):
                result = self.task.evaluate(network, batches(split), self.device)
            record |= {f"{split}_{name}{suffix}": result[name] for name in self.task.metrics}
        return all_finite(record, self.cfg.DISTILLER.TYPE, self.epoch)

    def _finish_epoch(self, record):
        state, epoch = self.state, self.epoch
        if not state.best or record[self.chosen_on] >= state.best[self.chosen_on]:
            state.best = record  # the later of two equal epochs is the best, as in mdistiller
        state.metrics = record
        state.begin(epoch + 1)
        if self.first:
            self.folder.append_metrics(record)
            self.trace.write(epoch)
            self.scalars.add({k: v for k, v in record.items() if k != "epoch"}, epoch * self.data.num_batches)
            log.info(epoch_line(record, state.epochs, self.splits, self.task))
        state.save_epoch(epoch)
        state.summarize("running")
        if self._asked_to_stop() and self.epoch <= state.epochs:
            raise Interrupted(self.stop_signal or signal.SIGTERM)
        if self.after_epoch is not None and epoch < state.epochs:
            self.after_epoch(record)


def all_finite(record: dict[str, float], method: str, epoch: int) -> dict[str, float]:
    """What an evaluation measured; raises NotFinite if the update before it diverged, with losses still finite."""
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(f"{method}: {', '.join(bad)} is not finite after epoch {epoch}; files saved before are intact "
                        "(a lower SOLVER.LR or distillation weight may help)")
    return record


def idle_parts(distiller, zero_losses: Iterable[str], optimizer_state: Mapping) -> list[str]:
    """What took no part in an epoch, in words: losses that were always 0, and parameters without gradients."""
    idle = [f"the loss {name} was 0 in every step: is its weight 0?" for name in zero_losses
            if name != "ce" or distiller.ce_weight]
    if optimizer_state and not distiller.varying_modules:
        unused = [name for name, parameter in distiller.named_parameters()
                  if parameter.requires_grad and not optimizer_state.get(parameter)]
        if unused:
            idle.append(f"{len(unused)} learnable parameters influence no loss ({unused[0]}, ...)")
    return idle


def publish(task: Task, student: torch.nn.Module, folder: RunFolder, name: str) -> None:
    """Write the best student, a network of this `name`, in the format of the task's library, if the task has one."""
    best = folder / "student_best.pth"
    if type(task).publish is not Task.publish and best.is_file():
        checkpoints.load_network(student, best, name)
        place = task.publish(student, folder.to_write("pretrained").parent)
        log.info("the best student, for other programs: %s", place)


def run_to_end(steps: Iterator) -> Any:
    """Take all steps of a generator; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
