"""From a config to a run: data, networks, teacher weights, distiller, trainer."""

import logging
import sys
from pathlib import Path

import torch
from yacs.config import CfgNode

import mdistiller
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine import checkpoints, distributed
from mdistiller.engine.device import choose_device, place, set_determinism
from mdistiller.engine.log import start_logging
from mdistiller.engine.run_folder import RunFolder, device_name
from mdistiller.engine.trainer import Trainer, set_seed, summary_line
from mdistiller.errors import UserError
from mdistiller.models import build_model

log = logging.getLogger("mdistiller")
RANDOM_TEACHER = "random"  # a value of DISTILLER.TEACHER_CHECKPOINT, for trying a pipeline without weights


def build_network(cfg: CfgNode, role: str, info) -> torch.nn.Module:
    """The network that DISTILLER.TEACHER or DISTILLER.STUDENT names, for the classes of the data."""
    try:
        return build_model(cfg.DISTILLER[role], info.num_classes, family=info.family)
    except UserError as error:
        raise UserError(f"DISTILLER.{role}: {error}") from None


def load_teacher(cfg: CfgNode, info) -> tuple[torch.nn.Module, dict]:
    """The teacher with its weights, and what the record of the run says of them."""
    name, configured = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT
    teacher = build_network(cfg, "TEACHER", info)
    if configured == RANDOM_TEACHER:
        log.warning("the teacher %s has random weights (DISTILLER.TEACHER_CHECKPOINT random)", name)
        return teacher, {"teacher_checkpoint": RANDOM_TEACHER, "teacher_sha256": None}
    path = checkpoints.find_teacher(info.name, name, configured)
    checkpoints.load_network(teacher, path, f"{name} with {info.num_classes} classes")
    digest = checkpoints.sha256(path)
    log.info("teacher %s from %s (sha256 %s)", name, path, digest[:12])
    return teacher, {"teacher_checkpoint": str(path), "teacher_sha256": digest}


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """Run one training from its config to its summary; everything is kept in the run's folder.

    Raises UserError for what the user can fix, RunError when the run cannot go on, Interrupted when it was stopped.
    """
    local_rank = distributed.start()
    try:
        folder = RunFolder.open(cfg, resume)
        device = choose_device(cfg.DEVICE, local_rank)
        set_determinism(cfg.EXPERIMENT.DETERMINISTIC)
        start_logging()
        data = build_data(cfg, device)
        set_seed(cfg.EXPERIMENT.SEED)
        student = build_network(cfg, "STUDENT", data.info)
        teacher, facts = None, {}
        if DISTILLERS[cfg.DISTILLER.TYPE].needs_teacher:
            teacher, facts = load_teacher(cfg, data.info)
        for network in filter(None, (student, teacher)):
            place(network, device, cfg.SOLVER.CHANNELS_LAST)
        set_seed(cfg.EXPERIMENT.SEED)  # the method's own modules do not depend on the size of the networks
        distiller = place(build_distiller(cfg, student, teacher, data.info), device, cfg.SOLVER.CHANNELS_LAST)
        trainer = Trainer(cfg, data, distiller, device, folder)
        distributed.barrier()  # no rank looks for the folder after another has made it
        if distributed.rank() == 0:
            folder.describe(cfg, device=device_name(device), processes=distributed.world_size(), **facts)
            start_logging(folder / "train.log")
            _announce(cfg, data, distiller, device, folder)
        else:
            logging.getLogger("mdistiller").setLevel(logging.WARNING)
        if resume:
            trainer.resume()
        summary = trainer.fit()
        if distributed.rank() == 0:
            log.info("done: %s", summary_line(summary))
        return summary
    finally:
        distributed.stop()


def _announce(cfg, data, distiller, device, folder):
    log.info("mdistiller %s from %s", mdistiller.__version__, Path(mdistiller.__file__).parent)
    log.info("command: %s", " ".join(sys.argv))
    info, teacher = data.info, cfg.DISTILLER.TEACHER if distiller.teacher is not None else "no teacher"
    log.info(
        "%s: %s -> %s on %s (%d training images, %d classes), seed %d, on %s",
        cfg.DISTILLER.TYPE, teacher, cfg.DISTILLER.STUDENT, info.name, info.num_train, info.num_classes,
        cfg.EXPERIMENT.SEED, device_name(device),
    )
    log.info("run folder: %s", folder.path)
