"""Search for the best settings of a method for a pair of networks, on validation images.

A trial is a run with settings proposed by Optuna's TPE sampler (Bergstra et al., NeurIPS 2011). It trains on the
training part of the images and is judged by the validation part (DATASET.VAL_FRACTION) after its last epoch; one below
the median, at the same epoch, of the trials that came to their end is ended early. The study is a journal file: any
number of processes may work on it, and each of them may be stopped and started again.
"""

import contextlib
import json
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mdistiller import files
from mdistiller.command import Interrupted
from mdistiller.config import active_cfg, dump_cfg, load_cfg
from mdistiller.config.length import num_epochs
from mdistiller.config.loading import method_keys
from mdistiller.config.stated import flatten
from mdistiller.distillers import DISTILLERS
from mdistiller.engine.run_folder import FREE, RunFolder, differences
from mdistiller.engine.setup import train
from mdistiller.errors import NotFinite, RunError, UserError, writing
from mdistiller.libraries import import_extra
from mdistiller.plugins import edited, recorded_files, same_files
from mdistiller.runs.records import RunRecord, read_run
from mdistiller.runs.training import Training

PROJECT = "tune"  # folder of all studies, below LOG.PREFIX
JOURNAL = "journal.log"  # in the folder of a study
DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
KINDS = ("ea", "normalized")  # values of EA.KIND that are tried for a weighted method
VAL_FRACTION = 0.1  # used if the configuration has no validation images
TRIAL_SEED = 1000  # seed of every trial, so that only settings differ; the final runs have seeds 0, 1, ...
WARM_UP = 4  # finished trials before any is ended early, and proposals before the sampler learns from them
BEST, OWN = "best", "own"  # the two configurations of the final runs


@dataclass(frozen=True)
class Setting:
    """The range of a key: from `low` to `high` on a logarithmic scale, or the `choices`."""

    own: Any  # the value of the configuration
    low: float = math.nan
    high: float = math.nan
    choices: tuple = ()

    @property
    def words(self) -> str:
        return " or ".join(self.choices) if self.choices else f"{self.low:.4g} to {self.high:.4g}, logarithmic"


def search_space(cfg, fixed: Sequence[str] = ()) -> dict[str, Setting]:
    """The keys that are tuned for the method of a configuration: those that its class declares in `search`.

    A key is varied by its factor up and down from the value in the configuration, within the range of the key; a
    weighted method is also tried with two kinds of weights. Keys in `fixed` are left as they are. Raises UserError
    where nothing is left.
    """
    method, keys, said, space = DISTILLERS[cfg.DISTILLER.TYPE], method_keys(), flatten(cfg), {}
    for name, factor in method.search.items():
        key = name if name in keys else f"{method.config_key}.{name}"
        value = said[key]
        least, above, most, below = keys[key].bounds(float)
        low = max(value / factor, 0.0 if least is None else least, 0.0 if above is None else above)
        high = min(value * factor, *(bound for bound in (most, below) if bound is not None))
        if key not in fixed and 0 < low < high:
            space[key] = Setting(value, low, high)
    if method.weighted and "EA.KIND" not in fixed:
        kinds = KINDS if cfg.EA.KIND in KINDS else (*KINDS, cfg.EA.KIND)
        space["EA.KIND"] = Setting(cfg.EA.KIND, choices=kinds)
    if not space:
        raise UserError(f"DISTILLER.TYPE: {cfg.DISTILLER.TYPE}: nothing to tune: its class declares no `search`, or "
                        "every key of it is fixed on the command line")
    return space


def _changed(there, now, elsewhere: bool, moved: bool) -> str:
    """What differs between two studies, in words; "" if nothing. Each is [a configuration as YAML, {key: its range}].

    As for a run, keys in FREE may differ, keys that only one configuration has belong to another version, and with
    `elsewhere` the teacher's file may have another place, with `moved` Python files of the user.
    """
    old, new = (flatten(yaml.safe_load(text)) for text, _ in (there, now))
    kept = differences({key: value for key, value in old.items() if key not in FREE}, new, elsewhere, moved)
    varied = [dict.fromkeys((*there[1], *now[1]), "not varied") | ranges for _, ranges in (there, now)]
    return kept or differences(*varied)


class Pruned(Interrupted):
    """The pruner ended a trial after an epoch; its run folder is complete."""


class JournalLock:
    """The lock of a journal for Optuna, whose own ones are files that a killed process leaves behind.

    Optuna takes those for left behind after 30 seconds, but waits forever for one that names a place of another
    machine, or a relative one.
    """

    def __init__(self, path: Path):
        self.path = path

    def acquire(self) -> bool:
        with writing(self.path):
            self.held = files.wait_for(lambda: files.lock(self.path), self.path)
        return True

    def release(self) -> None:
        self.held.close()


class Tuning:
    """The study of one configuration and its folder, `<LOG.PREFIX>/tune/<name>`; several processes may hold one.

    `overrides` ("KEY=value") belong to the configuration, and the keys that they set are not varied.
    """

    def __init__(self, config: str, overrides: Sequence[str], name: str | None, trials: int, seeds: int):
        self.training = Training(config, tuple(overrides))
        self.cfg = load_cfg(self.training.path, overrides)
        self.name, self.trials, self.seeds = name or self.training.name, trials, seeds
        self.space = search_space(self.cfg, [override.split("=")[0] for override in overrides])
        self.folder = Path(self.cfg.LOG.PREFIX) / PROJECT / self.name
        self.val_fraction = self.cfg.DATASET.VAL_FRACTION or VAL_FRACTION

    @cached_property
    def optuna(self):
        optuna = import_extra("optuna", "tuning", "tune")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna

    @cached_property
    def study(self):
        """The study in the journal file, created if there is none.

        Raises UserError if it has other settings (those in FREE may change) or another teacher, or lacks a trial whose
        folder is there.
        """
        with self.alone():
            journal = self._journal()
            said = [dump_cfg(active_cfg(self.cfg)), {key: one.words for key, one in self.space.items()}]
            try:
                storage = self.optuna.storages.JournalStorage(journal)
                names = self.optuna.get_all_study_names(storage)  # its folder may have another name by now
                study = self.optuna.create_study(
                    storage=storage, study_name=names[0] if names else self.name,
                    direction="maximize", load_if_exists=True,
                    sampler=self.optuna.samplers.TPESampler(n_startup_trials=WARM_UP),
                    pruner=self.optuna.pruners.MedianPruner(WARM_UP, n_warmup_steps=num_epochs(self.cfg.SOLVER) // 3),
                )
                teachers = study.user_attrs.get("teacher_sha256"), self.training.teacher_sha256
                known = None not in teachers  # not in studies of older versions, nor of a library's weights
                own, now = recorded_files(study.user_attrs), self.training.own_files
                there = json.loads(study.user_attrs.get("settings") or json.dumps(said))
                changed = _changed(there, said, known, moved=same_files(own, now))
            except (*DAMAGE, yaml.YAMLError) as error:  # a damaged journal may cause any of them
                raise UserError(f"{self.folder / JOURNAL}: not the journal of a study ({type(error).__name__}); "
                                "restore it, or choose another --name") from None
            if changed:
                raise UserError(f"{self.folder}: the study there has other settings: {changed}; choose another --name")
            if known and teachers[0] != teachers[1]:
                raise UserError(f"{self.folder}: the study there has another teacher: teacher_sha256 {teachers[0]} "
                                f"there, {teachers[1]} now; restore its file, or choose another --name")
            if others := edited(own, now):
                raise UserError(f"{self.folder}: {', '.join(others)} has changed since the study there was begun; "
                                "restore it, or choose another --name")
            begun = {self._trial_name(trial.number) for trial in study.trials
                     if trial.state != self.optuna.trial.TrialState.WAITING}
            for config in sorted(self.folder.glob("trial_*/config.yaml")):
                if config.parent.name not in begun:
                    raise self._unrecorded(config.parent)
            if not study.trials:
                study.set_user_attr("settings", json.dumps(said))
                study.set_user_attr("teacher_sha256", teachers[1])
                study.set_user_attr("own_files", now)
                study.enqueue_trial({key: setting.own for key, setting in self.space.items()})
        return study

    def _unrecorded(self, folder):
        return UserError(f"{self.folder / JOURNAL}: lacks what it held of {folder.name}, whose folder is there; "
                         "restore the journal, delete that folder, or choose another --name")

    @staticmethod
    def _trial_name(number):
        return f"trial_{number:03}"

    def _journal(self):
        """The journal file. What a process that died or a full disk left of a last line is taken off."""
        path, lock = self.folder / JOURNAL, JournalLock(self.folder / ".journal.lock")
        if path.exists():
            lock.acquire()
            try:
                with files.open_plain(path) as file:
                    content = file.read()
                if not content.endswith(b"\n"):
                    os.truncate(path, content.rfind(b"\n") + 1)
            finally:
                lock.release()
        return self.optuna.storages.journal.JournalFileBackend(str(path), lock)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which no other process starts or resumes a trial."""
        path = self.folder / ".study.lock"
        with writing(path):
            lock = files.wait_for(lambda: files.lock(path, inherited=False), path)
        with lock, writing(self.folder / JOURNAL):
            yield

    def run_trials(self) -> None:
        """Resume stopped trials, then start new ones, until the budget is used up."""
        while (claimed := self._claim()) is not None:
            trial, lock = claimed
            with lock:
                self._run_trial(trial)

    def _claim(self):
        """A trial that no other process runs and its lock, or None."""
        states, study = self.optuna.trial.TrialState, self.study  # made before the lock, which it takes for itself
        with self.alone():
            begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != states.WAITING]
            for frozen in begun:
                if frozen.state == states.RUNNING and (lock := self._lock(frozen.number)) is not None:
                    return self.optuna.trial.Trial(study, frozen._trial_id), lock
            if len(begun) >= self.trials:
                return None
            study.sampler.reseed_rng()  # two processes must not start the same trial
            trial = study.ask()
            return trial, self._lock(trial.number)

    def _lock(self, number):
        return files.lock(self.folder / f".trial_{number:03}.lock", inherited=False)

    def _run_trial(self, trial):
        name = self._trial_name(trial.number)
        if (self.folder / name / "config.yaml").is_file() and trial.params.keys() != self.space.keys():
            raise self._unrecorded(self.folder / name)
        chosen = {key: self._suggest(trial, key, setting) for key, setting in self.space.items()}
        opts = {"DATASET.VAL_FRACTION": self.val_fraction, "DATASET.TEST.ENABLED": False, "EXPERIMENT.SEED": TRIAL_SEED}
        state = self.optuna.trial.TrialState

        def after_epoch(record):
            with writing(self.folder / JOURNAL):
                trial.report(self._judged(record), record["epoch"])
            if trial.should_prune():
                raise Pruned(signal.SIGTERM)

        try:
            self._train(name, chosen, opts, after_epoch)
        except Pruned:
            self.study.tell(trial, state=state.PRUNED)
        except NotFinite as error:  # these settings do not work; after any other error the trial is resumed
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=state.FAIL)
        else:
            self.study.tell(trial, self._judged(read_run(self.folder / name).metrics()[-1]))

    def _suggest(self, trial, key, setting):
        if setting.choices:
            return trial.suggest_categorical(key, setting.choices)
        return trial.suggest_float(key, setting.low, setting.high, log=True)

    def _judged(self, record):
        """The headline metric on the validation images, from a line of metrics.jsonl; test results are not read."""
        found = [key for key in record if key.startswith("val_")]
        if not found:
            raise UserError(f"DATASET.VAL_FRACTION: {self.cfg.DATASET.TYPE} sets no validation images aside")
        return record[found[0]]

    def _train(self, name, chosen: Mapping[str, Any], opts, after_epoch=None):
        said = {**chosen, **opts, "EXPERIMENT.PROJECT": f"{PROJECT}/{self.name}", "EXPERIMENT.NAME": name}
        words = [word for pair in said.items() for word in pair]
        cfg, folder = load_cfg(self.training.path, [*self.training.overrides, *words]), RunFolder(self.folder / name)
        begun = (folder / "config.yaml").is_file()
        if begun and folder.finished:  # its records are enough; its checkpoints may have stayed on another machine
            folder.check_settings(cfg)
            folder.check_same(teacher_sha256=self.training.teacher_sha256)
        else:
            train(cfg, begun, after_epoch)

    @property
    def open_trials(self) -> int:
        """The number of trials of the budget that are not finished."""
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        return max(self.trials - len(finished), 0)

    def best(self) -> dict[str, Any]:
        """The settings of the best trial. Raises RunError when no trial has finished."""
        try:
            return self.study.best_trial.params
        except ValueError:
            raise RunError(f"{self.folder}: no trial came to its end; see the train.log of each") from None

    def run_final(self) -> dict[str, list[RunRecord]]:
        """Train the best settings, and those of the configuration, over fresh seeds.

        No training images are set aside but those of the configuration's own DATASET.VAL_FRACTION. Returns the finished
        runs of both, by BEST and OWN; no OWN if the best settings are those of the configuration. A run that another
        process trains is left to it.
        """
        own = {key: setting.own for key, setting in self.space.items()}
        number = self.study.best_trial.number  # in the name: a larger budget may have another best trial
        final = {BEST: (f"best_{number:03}", self.best())}
        if self.best() != own:
            final[OWN] = "own", own
        runs: dict[str, list[RunRecord]] = {label: [] for label in final}
        for seed in range(self.seeds):
            for label, (prefix, chosen) in final.items():
                name = f"{prefix}_s{seed}"
                if (lock := files.lock(self.folder / f".{name}.lock", inherited=False)) is None:
                    continue
                with lock:
                    self._train(name, chosen, {"EXPERIMENT.SEED": seed})
                runs[label].append(read_run(self.folder / name))
        return runs
