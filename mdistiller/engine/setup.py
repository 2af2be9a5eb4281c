"""Build a run from a config (data, task, networks, distiller), and train it."""

import contextlib
import logging
import random
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from yacs.config import CfgNode

import mdistiller
from mdistiller import distributed
from mdistiller.config import errors_name_files
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, Distiller, build_distiller, class_for
from mdistiller.engine.cache.teacher_cache import open_cache, why_live
from mdistiller.engine.device import (
    choose_device,
    keep_freed_memory,
    out_of_memory_fails_the_run,
    place,
    set_determinism,
)
from mdistiller.engine.log import evaluated, start_logging, why_it_ends
from mdistiller.engine.networks import load_student, ready, ready_teacher
from mdistiller.engine.periods import in_periods
from mdistiller.engine.run_folder import RunFolder, device_name
from mdistiller.engine.run_state import summary_line
from mdistiller.engine.sharing import Alone
from mdistiller.engine.trainer import StopRequest, Trainer, run_to_end
from mdistiller.errors import UserError
from mdistiller.libraries import check_installed
from mdistiller.precision import autocast, resolved, teacher_amp
from mdistiller.tasks import Task, build_task

log = logging.getLogger("mdistiller")
ALONE = Alone()


class Run(NamedTuple):
    """The parts of a run. `metadata` are the entries of run.json about the teacher (see `load_teacher`)."""

    cfg: CfgNode
    device: torch.device
    data: Any
    task: Task
    distiller: Distiller
    metadata: dict

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are measured after each epoch; the first one chooses the best epoch."""
        return tuple(split for split in self.data.splits if split != "test" or self.cfg.DATASET.TEST.ENABLED)


def set_seed(seed: int) -> None:
    """Seed the random generators of Python, NumPy and PyTorch; each training step sets its own seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def prepare_device(cfg: CfgNode, local_rank: int = 0) -> torch.device:
    """Choose the device of a run and apply its settings for determinism and memory."""
    device = choose_device(cfg.DEVICE, local_rank)
    set_determinism(cfg.EXPERIMENT.DETERMINISTIC, cfg.COMPILE)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def settle_precision(cfg: CfgNode, device: torch.device) -> None:
    """Replace SOLVER.AMP auto by the precision that it means on the device; the log names it."""
    asked, cfg.SOLVER.AMP = cfg.SOLVER.AMP, resolved(cfg.SOLVER.AMP, device)
    if asked != cfg.SOLVER.AMP:
        log.info("SOLVER.AMP auto: %s on %s", cfg.SOLVER.AMP, device_name(device))


def build_run(cfg: CfgNode, device: torch.device, weights: bool = True, shared: Alone = ALONE) -> Run:
    """Build data, task and distiller of a config on the device; no file is written.

    Without `weights` no checkpoint is read and the networks have random weights, for a run whose saved state is loaded
    next; only a teacher that `Task.evaluate` compares with always gets its weights. `shared` holds the parts that other
    runs of the process may have made. Raises UserError for errors that the user can fix. SOLVER.AMP auto is replaced by
    what it means on the device.
    """
    settle_precision(cfg, device)
    images = shared.data(cfg, lambda: build_data(cfg, device))
    data = in_periods(images, cfg.SOLVER)
    if not cfg.DATASET.TEST.ENABLED and "val" not in data.splits:
        raise UserError("DATASET.TEST.ENABLED False: expected validation images, set DATASET.VAL_FRACTION above 0")
    task = build_task(cfg, data.info)
    method, teacher, metadata = class_for(DISTILLERS[cfg.DISTILLER.TYPE], task), None, {}
    if weights:
        set_seed(cfg.EXPERIMENT.SEED)
    student = load_student(cfg, task) if weights else task.network("STUDENT")
    if method.needs_teacher or task.compares:
        ready_made = weights or task.compares
        teacher, metadata = (
            shared.teacher(cfg, method, lambda: ready_teacher(cfg, task, method, device)) if ready_made
            else (task.network("TEACHER"), {})
        )
        task.reference = teacher.eval() if task.compares else None
    if weights:
        ready(student, cfg, device)
        set_seed(cfg.EXPERIMENT.SEED)  # initial weights of the method's modules do not depend on the networks
    distiller = build_distiller(cfg, student, teacher if method.needs_teacher else None, data.info, task)
    distiller = place(distiller, device, cfg.SOLVER.CHANNELS_LAST)
    shared.join(cfg, images, distiller)
    return Run(cfg, device, data, task, distiller, metadata)


def train(cfg: CfgNode, resume: bool = False, after_epoch: Callable[[dict], None] | None = None) -> dict:
    """Train the run of a config and return its summary; all files are written to the run folder.

    `after_epoch` is called after each epoch except the last, once it is saved, with what it has measured. It may raise
    Interrupted to end the run there. Raises UserError for errors that the user can fix, RunError when the run fails,
    Interrupted when it is stopped.
    """
    return run_to_end(training(cfg, resume, after_epoch))


def training(
    cfg: CfgNode, resume: bool = False, after_epoch: Callable[[dict], None] | None = None, shared: Alone = ALONE,
    stop: StopRequest | None = None,
) -> Iterator[Trainer]:
    """`train` as a generator: it yields the trainer when the first step can be taken, then as `Trainer.steps`.

    With `stop`, it sets no handlers of signals; runs that train in one process have one, and one `shared`.
    """
    with why_it_ends(), out_of_memory_fails_the_run(), errors_name_files(cfg):
        return (yield from _training(cfg, resume, after_epoch, shared, stop))


def _training(cfg, resume, after_epoch, shared, stop):
    local_rank, folder = distributed.start(cfg.DEVICE), None
    try:
        start_logging(enabled=distributed.rank() == 0)  # first, since a run before this one had its own file
        folder = RunFolder.open(cfg, resume)
        check_installed("tensorboard", "a run, which writes TensorBoard scalars,")
        device = prepare_device(cfg, local_rank)
        run = build_run(cfg, device, shared=shared)
        run.task.check_evaluation()  # first, since a folder that is made needs --resume
        cache = _teacher_cache(run) if cfg.TEACHER_CACHE.ENABLED else None
        trainer = Trainer(run, folder, cache, after_epoch, stop)
        metadata = run.metadata | _described(run.data.info)
        folder.check_same(**{key: metadata.get(key) for key in ("teacher_sha256", "data_sha256")})
        distributed.barrier()  # every rank must have checked the folder before the first rank creates it
        if distributed.rank() == 0:
            folder.take(resume)
        with folder.as_it_was_if_refused():
            if distributed.rank() == 0:
                folder.describe(cfg, device=device_name(device), processes=distributed.world_size(), **metadata)
                start_logging(folder / "train.log")
                _announce(run, folder)
            if run.distiller.teacher is not None and not folder.finished:
                _measure_teacher(run, folder, shared)
            if resume:
                trainer.state.resume()
        if trainer.state.global_step == 0 and not folder.finished:
            run.distiller.eval().prepare(run.data)
            run.distiller.train()
        yield trainer
        with contextlib.nullcontext() if stop else trainer.stop.listening():
            summary = yield from trainer.steps()
        if cache is not None:
            log.info("teacher cache: %s", cache.summary())
        if distributed.rank() == 0:
            log.info("done: %s", summary_line(summary))
        return summary
    finally:
        if folder is not None:
            folder.release()
        distributed.stop()


def _described(info):
    """What run.json says of the training data; None where the data do not know it."""
    names = {"data_sha256": "fingerprint", "num_classes": "num_classes", "num_train": "num_train"}
    return {name: getattr(info, attribute, None) for name, attribute in names.items()}


def _teacher_cache(run):
    """The cache of the run's teacher; its folder is added to `run.metadata`.

    None when the teacher's outputs cannot be stored; the log then says why.
    """
    if not run.distiller.needs_teacher:
        return None
    reason = why_live(run.distiller, run.data, run.cfg.TEACHER_CACHE.KIND)
    if reason is not None:
        log.info("teacher cache: not used, the teacher runs in every step: %s", reason)
        return None
    cache = open_cache(run.cfg, run.data, run.distiller.teacher, run.metadata["teacher_sha256"], run.device,
                       views=run.distiller.views)
    run.metadata["teacher_cache"] = str(cache.store.folder)
    return cache


def _measure_teacher(run, folder, shared):
    """Write the teacher's test metrics to run.json; warn with the usual reason when they look wrong.

    Without DATASET.TEST.ENABLED the validation images are measured, and nothing is written.
    """
    run.distiller.eval()
    split = run.splits[-1]

    def measure():
        with autocast(run.device, teacher_amp(run.cfg)):
            batches = evaluated(run.data, split, distributed.rank(), distributed.world_size())
            return run.task.evaluate(run.distiller.teacher, batches, run.device)

    result = shared.results(run.distiller.teacher, measure)
    if distributed.rank() == 0 and split == "test":
        measured = {f"teacher_{name}": result[name] for name in (run.task.headline, "loss") if name in result}
        folder.write_json("run.json", folder.read_json("run.json") | measured)
    words = ", ".join(f"{name} {result[name]:.4g}" for name in run.task.metrics)
    log.info("the teacher's %s results: %s", split, words)
    doubt = run.task.doubt(result)
    if doubt:
        log.warning("the teacher's %s", doubt)


def _announce(run, folder):
    cfg, info = run.cfg, run.data.info
    log.info("mdistiller %s from %s", mdistiller.__version__, Path(mdistiller.__file__).parent)
    log.info("command: %s", shlex.join(sys.argv))
    log.info(
        "%s: %s -> %s on %s (%d training %s, %d classes), seed %d, on %s",
        cfg.DISTILLER.TYPE, cfg.DISTILLER.TEACHER if run.distiller.teacher is not None else "no teacher",
        cfg.DISTILLER.STUDENT, info.name, info.num_train, run.data.items, info.num_classes, cfg.EXPERIMENT.SEED,
        device_name(run.device),
    )
    log.info("run folder: %s", folder.path)
    if folder.finished:
        return  # the last two sessions in run.json are not the one before and this one
    for name in folder.edited():
        log.warning("%s has changed since this run was stopped; the epochs from here on use it as it is now", name)
    if changed := folder.changed_software():
        log.warning("the run was stopped with %s: it may end otherwise than an unbroken one", ", ".join(changed))
