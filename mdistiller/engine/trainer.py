"""The one trainer and its one training step."""

import contextlib
import json
import logging
import random
import signal
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from yacs.config import CfgNode

from mdistiller.command import Interrupted
from mdistiller.engine import checkpoints, distributed
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
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    # --- running ---------------------------------------------------------------------------------------------------

    def fit(self) -> dict:
        """Train from where the run stands to SOLVER.EPOCHS; returns the summary.

        Raises RunError for a non-finite loss, Interrupted after a SIGINT or SIGTERM whose state was saved.
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
        self.meters.check(self.data.num_batches - 1, epoch, self.cfg.DISTILLER.TYPE)
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
        scaled = losses if fraction == 1.0 else {name: fraction * loss for name, loss in losses.items()}
        self.updater.step(scaled, first=self.step == group_start, last=self.step == group_start + group - 1)
        if self.average is not None:
            self.average.update_parameters(self.distiller.deployed())
        self.meters.add(self.step, losses, logits, batch["target"], self.distiller.monitor)
        self.step += 1

    def _images(self, step):
        """How many images, over all ranks, a step of an epoch has."""
        size = self.cfg.SOLVER.BATCH_SIZE
        return min(size, self.data.info.num_train - step * size)

    def _poll(self, bar):
        """Read what the device has measured so far: the bar, TensorBoard, a loss that is not finite, a stop signal."""
        done = self.step - 1
        self.meters.check(done, self.epoch, self.cfg.DISTILLER.TYPE)
        global_step = (self.epoch - 1) * self.data.num_batches + self.step
        if not bar.disable:
            bar.set_postfix(loss=f"{sum(self.meters.losses(done).values()):.3f}")
        if global_step % self.cfg.LOG.TENSORBOARD_FREQ == 0 and self.first:
            losses = self.meters.losses(done)
            self.scalars.add({f"step/{name}": value for name, value in losses.items()}, global_step)
        between_updates = self.step % self.cfg.SOLVER.ACCUMULATE == 0 and self.step < self.data.num_batches
        if distributed.any_rank(self.stop_signal is not None, self.device) and between_updates:
            self._stop()

    def _stop(self):
        self.save("latest.pth")
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
        """Write the whole state of the run, from which it continues to the same weights."""
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
        }
        if self.distiller.teacher is not None and self.distiller.teacher_mode == "train":
            state["teacher"] = self.distiller.teacher.state_dict()  # its running statistics moved
        if self.average is not None:
            state["average"] = self.average.state_dict()
        checkpoints.save(state, self.folder / name)

    def resume(self) -> None:
        """Take up the state of latest.pth, if the run got as far as writing one."""
        path = self.folder / "latest.pth"
        if not path.is_file():
            log.info("nothing to resume from: %s is not there yet", path)
            self.folder.keep_metrics_before(1)
            return
        try:
            self._restore(checkpoints.load(path, self.device))
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: does not hold the state of this run ({type(error).__name__}); put a copy of "
                            "best.pth or epoch_<n>.pth in its place, or delete it to begin anew") from error
        if self.first:
            self.folder.keep_metrics_before(self.epoch)
        log.info("resuming at epoch %d, step %d", self.epoch, self.step + 1)

    def _restore(self, state):
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
