"""The one trainer and its one training step."""

import contextlib
import json
import logging
import math
import random
import signal
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from yacs.config import CfgNode

from mdistiller import distributed, files
from mdistiller.command import Interrupted
from mdistiller.engine import checkpoints
from mdistiller.engine.device import autocast
from mdistiller.engine.evaluation import evaluate
from mdistiller.engine.log import Scalars, progress
from mdistiller.engine.meters import Meters
from mdistiller.engine.optim import build_updater, learning_rate
from mdistiller.engine.run_folder import RunFolder
from mdistiller.engine.trace import EntropyTrace
from mdistiller.errors import RunError, UserError

log = logging.getLogger("mdistiller")
POLL_STEPS = 50  # steps between looks at the device's numbers
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last two: clusters' warnings
LATEST, PREVIOUS, DAMAGED = "latest.pth", "previous.pth", "damaged.pth"


class Trainer:
    """Trains a distiller on `data` and keeps the run folder; every step is a function of (seed, epoch, step)."""

    def __init__(self, cfg: CfgNode, data, distiller, device: torch.device, folder: RunFolder, teacher_cache=None):
        self.cfg, self.data, self.distiller, self.device, self.folder = cfg, data, distiller, device, folder
        self.teacher_cache = teacher_cache
        self.updater = build_updater(cfg, distiller, device)
        self.model = distiller if self.updater.own_reduction else distributed.wrap(distiller, device)
        decay = cfg.SOLVER.EMA
        average = get_ema_multi_avg_fn(decay)
        self.average = AveragedModel(distiller.deployed(), multi_avg_fn=average, use_buffers=True) if decay else None
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.first = self.rank == 0  # this process writes
        self.trace = EntropyTrace(cfg, data, distiller, folder.path)
        self.epoch, self.step = 1, 0  # what comes next
        self.best: dict = {}
        self.metrics: dict = {}
        self.wall_seconds = 0.0
        self.meters = Meters(data.num_batches, device)
        self.stop_signal: int | None = None
        self.latest_is_good = True  # latest.pth, if there is one, can be read
        self.skipped = 0  # steps that were left out, since their loss was not finite
        self.warned: set[str] = set()

    # --- running ---------------------------------------------------------------------------------------------------

    def fit(self) -> dict:
        """Train from where the run stands to SOLVER.EPOCHS; returns the summary.

        Raises RunError for a non-finite loss, Interrupted after a signal of STOP_SIGNALS, the state saved.
        """
        previous = {number: signal.signal(number, self._ask_to_stop) for number in STOP_SIGNALS}
        steps_done = (self.epoch - 1) * self.data.num_batches + self.step
        self.scalars = Scalars(self.folder / "tb", purge_step=steps_done or None, enabled=self.first)
        try:
            for _ in range(self.epoch, self.cfg.SOLVER.EPOCHS + 1):
                self._epoch()
            return self._summarize("done")
        except Interrupted:
            self._summarize("interrupted")
            raise
        except BaseException:
            with contextlib.suppress(RunError, UserError):  # a full disk must not hide what failed
                self._summarize("failed")
            raise
        finally:
            self.scalars.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number, frame):
        self.stop_signal = number

    def _epoch(self):
        epoch, started = self.epoch, time.perf_counter()
        self.distiller.train()
        resumed_at = self.step
        poll_steps = 1 if self.device.type == "cpu" and self.world_size == 1 else POLL_STEPS  # reading the CPU is free
        with progress(self.data.num_batches, f"epoch {epoch}/{self.cfg.SOLVER.EPOCHS}", self.first) as bar:
            bar.update(self.step)
            for batch in self.batches():
                self._step(batch)
                bar.update()
                if self.step % poll_steps == 0:
                    self._poll(bar)
                if self._saves_within_the_epoch():
                    self._check_losses()
                    self.save(LATEST)
        self._check_losses()
        self._warn()
        seconds = time.perf_counter() - started
        images = min(self.data.info.num_train, (self.data.num_batches - resumed_at) * self.cfg.SOLVER.BATCH_SIZE)
        record = {"epoch": epoch, "lr": learning_rate(self.cfg.SOLVER, epoch), **self.meters.epoch_values()}
        record |= {"seconds": seconds, "images_per_second": images / seconds}
        record |= self._evaluate()
        self.wall_seconds += time.perf_counter() - started
        self._finish_epoch(record)

    def batches(self) -> Iterator[dict]:
        """What is left of the epoch, with the teacher's logits where they are stored."""
        place = {"start": self.step, "rank": self.rank, "world_size": self.world_size}
        batches = self.data.train_batches(self.epoch, views=self.distiller.views, **place)
        if self.teacher_cache is None:
            return batches
        return self.teacher_cache.attach(batches, self.data.train_views(self.epoch, **place))

    def _step(self, batch):
        """The one training step: forward, losses, backward, update; no value is read back from the device."""
        step_seed = (self.cfg.EXPERIMENT.SEED * 1_000_003 + self.epoch) * 1_000_003 + self.step
        torch.manual_seed(step_seed % 2**63)  # methods that draw do so as a function of (seed, epoch, step)
        solver, total = self.cfg.SOLVER, self.data.num_batches
        self.updater.set_learning_rate(learning_rate(solver, self.epoch, self.step / total))
        group_start = self.step - self.step % solver.ACCUMULATE
        group = min(solver.ACCUMULATE, total - group_start)  # the last group of an epoch may be smaller
        images = sum(self._images(step) for step in range(group_start, group_start + group))
        fraction = batch.pop("batch_fraction", 1.0) * self._images(self.step) / images
        with autocast(self.device, self.cfg.SOLVER.AMP):
            logits, losses = self.model(epoch=self.epoch, **batch)
        if solver.SKIP_NONFINITE and self._leave_out(losses):
            return
        scaled = losses if fraction == 1.0 else {name: fraction * loss for name, loss in losses.items()}
        self.updater.step(scaled, first=self.step == group_start, last=self.step == group_start + group - 1)
        if self.average is not None:
            self.average.update_parameters(self.distiller.deployed())
        self.meters.add(self.step, losses, logits, batch["target"], self.distiller.monitor)
        self.step += 1

    def _leave_out(self, losses):
        """Whether this step goes without an update, its loss not finite on some rank; SKIP_NONFINITE steps may."""
        if self.meters.rows is None and self.step == self.data.num_batches - 1:
            return False  # an epoch without a single step has nothing to report
        bad = not bool(torch.isfinite(sum(loss.detach() for loss in losses.values())))
        if self.skipped >= self.cfg.SOLVER.SKIP_NONFINITE or not distributed.any_rank(bad, self.device):
            return False
        self.skipped, self.step = self.skipped + 1, self.step + 1
        log.warning("epoch %d, step %d: the loss is not finite: left out (%d of SOLVER.SKIP_NONFINITE %d)",
                    self.epoch, self.step, self.skipped, self.cfg.SOLVER.SKIP_NONFINITE)
        return True

    def _check_losses(self):
        """Raise RunError for the first loss that was not finite; its batch is named in nonfinite.pt."""
        found = self.meters.first_nonfinite(self.step - 1)
        if found is None:
            return
        step, terms = found
        method, path = self.cfg.DISTILLER.TYPE, self.folder / "nonfinite.pt"
        index = torch.from_numpy(self.data.batch_index(self.epoch, step))
        facts = {"method": method, "terms": terms, "epoch": self.epoch, "step": step + 1, "index": index}
        words = f"its training images are named in {path}"
        try:
            if self.first:
                checkpoints.save(facts, path)
        except RunError as error:
            words = str(error)
        raise RunError(
            f"{method}: loss {', '.join(terms)} is not finite at epoch {self.epoch}, step {step + 1}; {words}; "
            "what was saved before is intact (a lower SOLVER.LR or distillation weight may help)"
        )

    def _warn(self):
        """Say once what a finished epoch shows to be idle: a loss that is always 0, a parameter without gradients."""
        idle = [f"the loss {name} was 0 in every step: is its weight 0?" for name in self.meters.zero_losses()
                if name != "ce" or self.distiller.ce_weight]
        state = self.updater.optimizer.state
        if state and not self.distiller.varying_modules:
            unused = [name for name, parameter in self.distiller.named_parameters()
                      if parameter.requires_grad and not state.get(parameter)]
            if unused:
                idle.append(f"{len(unused)} learnable parameters take part in no loss ({unused[0]}, ...)")
        for words in idle:
            if words not in self.warned:
                log.warning("%s: %s", self.cfg.DISTILLER.TYPE, words)
        self.warned.update(idle)

    def _images(self, step):
        """How many images, over all ranks, a step of an epoch has."""
        size = self.cfg.SOLVER.BATCH_SIZE
        return min(size, self.data.info.num_train - step * size)

    def _poll(self, bar):
        """Read what the device has measured so far: the bar, TensorBoard, a loss that is not finite, a stop signal."""
        done = self.step - 1
        self._check_losses()
        global_step = (self.epoch - 1) * self.data.num_batches + self.step
        if not bar.disable and self.meters.rows is not None:
            bar.set_postfix(loss=f"{sum(self.meters.losses(done).values()):.3f}")
        if global_step % self.cfg.LOG.TENSORBOARD_FREQ == 0 and self.first and self.meters.rows is not None:
            losses = self.meters.losses(done)
            self.scalars.add({f"step/{name}": value for name, value in losses.items()}, global_step)
        if distributed.any_rank(self.stop_signal is not None, self.device) and self._between_updates():
            self._stop()

    def _between_updates(self):
        """Whether the state is one that a run can continue from, within the epoch."""
        return self.step % self.cfg.SOLVER.ACCUMULATE == 0 and self.step < self.data.num_batches

    def _saves_within_the_epoch(self):
        steps = self.cfg.LOG.SAVE_CHECKPOINT_STEPS
        return bool(steps) and self.step % steps == 0 and self._between_updates()

    def _stop(self):
        self.save(LATEST)
        raise Interrupted(self.stop_signal or signal.SIGTERM)

    def _evaluate(self):
        self.distiller.eval()
        networks = {"": self.distiller}
        if self.average is not None:
            networks["_ema"] = lambda image: self.average.eval()(image).logits
        record = {}
        for split in self.data.splits:
            for suffix, network in networks.items():
                with autocast(self.device, self.cfg.SOLVER.AMP):
                    batches = self.data.eval_batches(split, self.rank, self.world_size)
                    result = evaluate(network, batches, self.device)
                record |= {f"{split}_{name}{suffix}": result[name] for name in ("top1", "top5", "loss")}
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if bad:  # the last update diverged: what the steps measured came before it
            raise RunError(
                f"{self.cfg.DISTILLER.TYPE}: {', '.join(bad)} is not finite after epoch {self.epoch}; what was saved "
                "before is intact (a lower SOLVER.LR or distillation weight may help)"
            )
        return record

    # --- keeping ---------------------------------------------------------------------------------------------------

    def _finish_epoch(self, record):
        chosen_on = f"{self.data.splits[0]}_top1"  # "val" when there is one: the test set then selects nothing
        if not self.best or record[chosen_on] >= self.best[chosen_on]:
            self.best = record  # ties take the later epoch, as mdistiller does
        self.metrics = record
        epoch, freq = self.epoch, self.cfg.LOG.SAVE_CHECKPOINT_FREQ
        self.epoch, self.step = epoch + 1, 0
        self.meters = Meters(self.data.num_batches, self.device)
        if self.first:
            self.trace.write(epoch)
            self.folder.append_metrics(record)
            self.scalars.add({k: v for k, v in record.items() if k != "epoch"}, epoch * self.data.num_batches)
            log.info(self._line(record))
        names = ([f"epoch_{epoch}"] if epoch % freq == 0 else []) + (["best"] if self.best is record else [])
        if self.average is not None:
            self._save_student("student_ema", self.average.module)
        for name in [*names, "latest"]:  # latest.pth last: a run killed in between repeats the epoch
            self._save_student("student_" + name.removeprefix("epoch_"), self.distiller.deployed())
            self.save(f"{name}.pth")
        self._summarize("running")
        if distributed.any_rank(self.stop_signal is not None, self.device) and self.epoch <= self.cfg.SOLVER.EPOCHS:
            raise Interrupted(self.stop_signal or signal.SIGTERM)

    def _line(self, record):
        parts = [f"epoch {record['epoch']}/{self.cfg.SOLVER.EPOCHS}", f"lr {record['lr']:.4g}"]
        parts += [f"loss {record['train_loss']:.4f}", f"train {record['train_top1']:.2f}"]
        parts += [f"{split} {record[f'{split}_top1']:.2f}" for split in self.data.splits]
        if "weight_mean" in record:
            parts.append(f"weight {record['weight_mean']:.3f} (sd {record['weight_std']:.3f})")
        return ", ".join([*parts, f"{record['images_per_second']:.0f} images/s"])

    def _save_student(self, name, network):
        if self.first:
            state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            checkpoints.save({"model": state}, self.folder / f"{name}.pth")

    def save(self, name: str) -> None:
        """Write the whole state of the run, from which it continues to the same weights.

        The latest.pth before becomes previous.pth; one that could not be read does not take a good one's place.
        """
        if not self.first:
            return
        state = {
            "model": self.distiller.state_dict(),
            "updater": self.updater.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "wall_seconds": self.wall_seconds,
            "meters": self.meters.state_dict(),
            "skipped": self.skipped,
        }
        if self.distiller.teacher is not None and self.distiller.teacher_mode == "train":
            state["teacher"] = self.distiller.teacher.state_dict()  # its running statistics moved
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if name != LATEST:
            return checkpoints.save(state, self.folder / name)
        checkpoints.save(state, self.folder / name, keep=self.folder / (PREVIOUS if self.latest_is_good else DAMAGED))
        self.latest_is_good = True

    def resume(self) -> None:
        """Take up the state of latest.pth, or of previous.pth where that cannot be read or is not there.

        Raises UserError when no state that is there can be read, or when it is not one of this run.
        """
        if self.first:
            files.remove_unfinished(self.folder.path)
        state = self._newest_state()
        if state is None:
            log.info("nothing to resume from: %s is not there yet", self.folder / LATEST)
            if self.first:
                self.folder.keep_metrics_before(1)
            return
        try:
            self._take_up(state)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{self.folder / LATEST}: does not hold the state of this run ({type(error).__name__}); put a copy of "
                "best.pth or epoch_<n>.pth in its place, or delete it to begin anew"
            ) from error
        if self.first:
            self.folder.keep_metrics_before(self.epoch)
        log.info("resuming at epoch %d, step %d", self.epoch, self.step + 1)

    def _newest_state(self):
        there = [path for path in (self.folder / LATEST, self.folder / PREVIOUS) if path.is_file()]
        errors = []
        for path in there:
            try:
                state = checkpoints.load(path, self.device)
            except UserError as error:
                errors.append(error)
                continue
            if errors:
                self.latest_is_good = False
                log.warning("%s; continuing from %s", errors[0], path)
            return state
        if errors:
            raise errors[0]
        return None

    def _take_up(self, state):
        for key, kind in {"epoch": int, "step": int, "best": dict, "metrics": dict, "wall_seconds": float}.items():
            if not isinstance(state[key], kind):
                raise TypeError(f"{key} is {type(state[key]).__name__}")
        if not (1 <= state["epoch"] <= self.cfg.SOLVER.EPOCHS + 1 and 0 <= state["step"] < self.data.num_batches):
            raise IndexError(f"epoch {state['epoch']}, step {state['step']}")
        self.distiller.load_state_dict(state["model"])
        if "teacher" in state:
            self.distiller.teacher.load_state_dict(state["teacher"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.updater.load_state_dict(state["updater"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.metrics, self.wall_seconds = state["best"], state["metrics"], state["wall_seconds"]
        self.meters.load_state_dict(state["meters"])
        self.skipped = state.get("skipped", 0)

    def _summarize(self, status):
        if not self.first:
            return {}
        metrics, best = self.metrics, self.best
        summary = {
            "status": status,
            "epoch": self.epoch - 1,
            "epochs": self.cfg.SOLVER.EPOCHS,
            "last_top1": metrics.get("test_top1"),
            "last_top5": metrics.get("test_top5"),
            "best_top1": best.get("test_top1"),
            "best_top5": best.get("test_top5"),
            "best_epoch": best.get("epoch"),
            "selected_on": self.data.splits[0],
            "wall_seconds": round(self.wall_seconds, 3),
            "images_per_second": metrics.get("images_per_second"),
            "seed": self.cfg.EXPERIMENT.SEED,
        }
        self.folder.write_json("summary.json", summary)
        return summary


def set_seed(seed: int) -> None:
    """Seed every library's generator for building networks and modules; steps seed themselves."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def summary_line(summary: dict) -> str:
    """The result of a run in one line."""
    return json.dumps({key: summary[key] for key in ("last_top1", "best_top1", "best_epoch", "wall_seconds")})
