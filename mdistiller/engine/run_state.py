"""The state of a run, and saving and restoring it: checkpoints, student weights, summary."""

import json
import logging
import time

from torch.optim.swa_utils import AveragedModel

from mdistiller import distributed, files, traces
from mdistiller.config.length import num_epochs
from mdistiller.config.words import shown
from mdistiller.engine import checkpoints
from mdistiller.engine.meters import Meters
from mdistiller.engine.optim import Updater
from mdistiller.engine.run_folder import CHECKPOINTS, RunFolder, differences, settings
from mdistiller.engine.weights import load_exactly
from mdistiller.errors import UserError

log = logging.getLogger("mdistiller")
LATEST, PREVIOUS = CHECKPOINTS
DAMAGED = "damaged.pth"
TEACHER_DIGEST = "teacher_sha256"  # as in run.json


class RunState:
    """Epoch, step and results of a run. A run that is resumed from the saved state reaches the same weights."""

    def __init__(self, run, updater: Updater, average: AveragedModel | None, folder: RunFolder):
        self.run, self.updater, self.average, self.folder = run, updater, average, folder
        self.cfg, self.distiller, self.data = run.cfg, run.distiller, run.data
        self.epochs = num_epochs(run.cfg.SOLVER)
        self.first = distributed.rank() == 0  # only this process writes files
        self.best: dict = {}
        self.metrics: dict = {}
        self.wall_seconds = 0.0
        self.skipped = 0  # number of steps that were skipped because their loss was not finite
        self.latest_is_good = True  # latest.pth, if it exists, can be read
        self.begin(1)

    def begin(self, epoch: int) -> None:
        """Move to the first step of an epoch."""
        self.epoch, self.step = epoch, 0
        self.earlier_seconds, self.started = 0.0, time.perf_counter()  # of this epoch: earlier sessions, this session
        self.meters = Meters(self.data.num_batches, self.run.device)

    @property
    def epoch_seconds(self) -> float:
        """Seconds spent on the epoch so far, including earlier sessions."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @property
    def global_step(self) -> int:
        """Number of steps since the run began."""
        return (self.epoch - 1) * self.data.num_batches + self.step

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write the complete state of the run to the file `name`.

        An existing latest.pth becomes previous.pth, or damaged.pth if it could not be read.
        """
        meters = distributed.gather(self.meters.state_dict())
        if not self.first:
            return
        state = {
            "settings": self._settings(),
            "model": self.distiller.state_dict(),
            "updater": self.updater.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "wall_seconds": self.wall_seconds,
            "epoch_seconds": self.epoch_seconds if self.step else 0.0,
            "meters": meters[0] if len(meters) == 1 else meters,
            "skipped": self.skipped,
        }
        if self.distiller.teacher is not None and self.distiller.teacher_mode == "train":
            state["teacher"] = self.distiller.teacher.state_dict()  # its batch-norm statistics have changed
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if name != LATEST:
            return checkpoints.save(state, self.folder.to_write(name))
        before = self.folder / (PREVIOUS if self.latest_is_good else DAMAGED)
        checkpoints.save(state, self.folder.to_write(name), keep=before)
        self.latest_is_good = True

    def save_epoch(self, epoch: int) -> None:
        """Write the files of a finished epoch, latest.pth last: a run that is killed before repeats the epoch."""
        names = [f"epoch_{epoch}"] if epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0 else []
        names += ["best"] if self.best is self.metrics else []
        if self.average is not None:
            self._save_student("student_ema", self.average.module)
        for name in [*names, "latest"]:
            self._save_student("student_" + name.removeprefix("epoch_"), self.distiller.deployed())
            self.save(f"{name}.pth")

    def _save_student(self, name, network):
        if self.first:
            state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            checkpoints.save({"model": state}, self.folder.to_write(f"{name}.pth"))

    def summarize(self, status: str, reason: str | None = None) -> dict:
        """Write summary.json and return its content ({} on ranks other than the first).

        `reason`: why a failed or interrupted run ended.
        Results are those of the test images, or of the validation images without DATASET.TEST.ENABLED.
        """
        if not self.first:
            return {}
        task, results = self.run.task, {"last": self.metrics, "best": self.best}
        summary = {
            "status": status,
            **({"reason": reason} if reason else {}),
            "epoch": self.epoch - 1,
            "epochs": self.epochs,
            "headline": task.headline,
            **{f"{when}_{name}": result.get(f"{self.run.splits[-1]}_{name}") for when, result in results.items()
               for name in task.metrics},
            "best_epoch": self.best.get("epoch"),
            "selected_on": self.run.splits[0],
            "wall_seconds": round(self.wall_seconds, 3),
            f"{task.unit}_per_second": self.metrics.get(f"{task.unit}_per_second"),
            "seed": self.cfg.EXPERIMENT.SEED,
        }
        self.folder.write_json("summary.json", summary)
        return summary

    # --- restoring -------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Restore the state of latest.pth, or of previous.pth if latest.pth is missing or cannot be read.

        Raises UserError when none of the existing files can be read, or when the state belongs to another run.
        """
        if self.first:
            for folder in (self.folder.path, self.folder / traces.FOLDER):
                files.remove_unfinished(folder)
        state = self._newest_state()
        if state is None:
            log.info("nothing to resume from: %s does not exist yet", self.folder / LATEST)
            if self.first:
                self.folder.keep_metrics_before(1)
            return
        try:
            self._check_run(state.get("settings", {}))
            self._restore(state)
        except UserError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = error if isinstance(error, ValueError) else type(error).__name__
            raise UserError(
                f"{self.folder / LATEST}: does not hold the state of this run ({reason}); put a copy of "
                "best.pth or epoch_<n>.pth in its place, or delete it to start again"
            ) from error
        if self.first:
            self.folder.keep_metrics_before(self.epoch)
        place = f"step {self.step + 1}" if self.step < self.data.num_batches else "its evaluation"
        log.info("resuming at epoch %d, %s", self.epoch, place)

    def _newest_state(self):
        there = [path for path in (self.folder / LATEST, self.folder / PREVIOUS) if path.is_file()]
        errors = []
        for path in there:
            try:
                state = checkpoints.load(path, self.run.device)
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

    def _settings(self):
        return settings(self.cfg) | {TEACHER_DIGEST: self.run.metadata.get(TEACHER_DIGEST)}

    def _check_run(self, there):
        """Raise UserError for the state of a run with other settings (files before 26 November 2026 store none)."""
        now = self._settings()
        now.pop("SOLVER.EPOCHS")  # who writes more of them into config.yaml extends the run
        changed = differences(there, now, elsewhere=bool(there.get(TEACHER_DIGEST)))  # later files store the digest
        if changed:
            raise UserError(
                f"{self.folder / LATEST}: is of a run with other settings: {changed}; put a copy of this run's "
                "best.pth or epoch_<n>.pth in its place, or delete the folder to start again"
            )

    def _restore(self, state):
        for key, kind in {"epoch": int, "step": int, "best": dict, "metrics": dict, "wall_seconds": float}.items():
            if not isinstance(state[key], kind):
                raise TypeError(f"{key} is {type(state[key]).__name__}")
        if not (1 <= state["epoch"] <= self.epochs + 1 and 0 <= state["step"] <= self.data.num_batches):
            raise IndexError(f"epoch {state['epoch']}, step {state['step']}")
        for name in ("best", "metrics"):
            self._check_results(name, state[name])
        load_exactly(self.distiller, state["model"])
        if "teacher" in state:
            load_exactly(self.distiller.teacher, state["teacher"])
        if self.average is not None:
            load_exactly(self.average, state["average"])
        self.updater.load_state_dict(state["updater"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.metrics, self.wall_seconds = state["best"], state["metrics"], state["wall_seconds"]
        self.earlier_seconds = float(state.get("epoch_seconds", 0.0))
        meters = state["meters"] if isinstance(state["meters"], list) else [state["meters"]]
        rank = distributed.rank()
        self.meters.load_state_dict(meters[min(rank, len(meters) - 1)])
        if rank >= len(meters):  # there were fewer ranks: this one has measured nothing in the epoch
            self.meters.clear()
        self.skipped = int(state.get("skipped", 0))

    def _check_results(self, name, results):
        """Raise ValueError for results of an epoch that hold anything but numbers, or not the headline metric."""
        headline = f"{self.run.splits[0]}_{self.run.task.headline}"
        if results and headline not in results:
            raise ValueError(f"{name} has no {headline}")
        for key, value in results.items():
            if not isinstance(value, int | float):
                raise ValueError(f"{name}: {shown(key)}: expected a number, found {shown(value)}")


def summary_line(summary: dict) -> str:
    """The result of a run in one line, to two decimals; summary.json has all digits."""
    names = [f"last_{summary['headline']}", f"best_{summary['headline']}", "best_epoch", "wall_seconds"]
    values = {name: summary[name] for name in names}
    return json.dumps({name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()})
