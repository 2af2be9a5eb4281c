"""From a config to a run: data, networks, teacher weights, distiller, trainer."""

import logging
import sys
from pathlib import Path

import torch
from yacs.config import CfgNode

import mdistiller
from mdistiller import distributed, files
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine import checkpoints
from mdistiller.engine.device import (
    autocast,
    choose_device,
    keep_freed_memory,
    out_of_memory_fails_the_run,
    place,
    set_determinism,
)
from mdistiller.engine.evaluation import evaluate
from mdistiller.engine.folding import fold_teacher
from mdistiller.engine.log import start_logging
from mdistiller.engine.run_folder import RunFolder, device_name
from mdistiller.engine.teacher_cache import open_cache, why_live
from mdistiller.engine.trainer import Trainer, set_seed, summary_line
from mdistiller.errors import UserError
from mdistiller.models import AtInputSize, build_model, try_out

log = logging.getLogger("mdistiller")
NEAR_CHANCE = 2.0  # times the accuracy of guessing
RANDOM_TEACHER = "random"  # a value of DISTILLER.TEACHER_CHECKPOINT, for trying a pipeline without weights
PRETRAINED = "pretrained"  # another, and of STUDENT_CHECKPOINT: the library's weights
IMAGENET_CLASSES = 1000


def build_network(cfg: CfgNode, role: str, info, pretrained: bool = False) -> torch.nn.Module:
    """The network that DISTILLER.TEACHER or DISTILLER.STUDENT names, for the classes, size and pixels of the data."""
    name, size, pixels = (cfg.DISTILLER[role + key] for key in ("", "_INPUT_SIZE", "_NORMALIZATION"))
    try:
        extra = {"image_size": size} if ":" in name else {}
        network = build_model(name, info.num_classes, family=info.family, pretrained=pretrained, **extra)
    except UserError as error:
        raise UserError(f"DISTILLER.{role}: {error}") from None
    data = (info.mean, info.std)
    own = getattr(network, "normalisation", None)
    if pixels == "own" and own is None:
        raise UserError(f"DISTILLER.{role}_NORMALIZATION: {name} has none of its own; expected data")
    if pixels == "data" or own is None:
        own = data
    size = size or getattr(network, "input_size", None)
    if size not in (None, info.image_size) or own != data:
        network = AtInputSize(network, size, data, own)
    try:
        try_out(network, info.num_classes, info.image_size)
    except UserError as error:
        raise UserError(f"DISTILLER.{role}: {name}: {error}") from None
    return network


def load_student(cfg: CfgNode, info) -> torch.nn.Module:
    """The student where its training starts: with random weights, unless DISTILLER.STUDENT_CHECKPOINT names others."""
    configured = cfg.DISTILLER.STUDENT_CHECKPOINT
    student = build_network(cfg, "STUDENT", info, pretrained=configured == PRETRAINED)
    if configured not in (None, PRETRAINED):
        checkpoints.load_network(student, configured, f"{cfg.DISTILLER.STUDENT} with {info.num_classes} classes")
    return student


def load_teacher(cfg: CfgNode, info) -> tuple[torch.nn.Module, dict]:
    """The teacher with its weights, and what the record of the run says of them.

    Without DISTILLER.TEACHER_CHECKPOINT the teachers of ImageNet's 1,000 classes are torchvision's.
    """
    name, configured = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT
    if configured is None and info.family == "imagenet" and info.num_classes == IMAGENET_CLASSES:
        configured = PRETRAINED
    teacher = build_network(cfg, "TEACHER", info, pretrained=configured == PRETRAINED)
    if configured == RANDOM_TEACHER:
        log.warning("the teacher %s has random weights (DISTILLER.TEACHER_CHECKPOINT random)", name)
        return teacher, {"teacher_checkpoint": RANDOM_TEACHER, "teacher_sha256": None}
    if configured == PRETRAINED:
        if getattr(teacher, "new_head", False):
            raise UserError(
                f"DISTILLER.TEACHER_CHECKPOINT: pretrained {name} knows other classes than the {info.num_classes} of "
                f"{info.name}: fine-tune it first (DISTILLER.TYPE NONE, DISTILLER.STUDENT {name}, "
                "DISTILLER.STUDENT_CHECKPOINT pretrained), then name its student_best.pth"
            )
        digest = checkpoints.state_sha256(teacher.state_dict())
        log.info("teacher %s with its library's weights (sha256 of the tensors %s)", name, digest[:12])
        return teacher, {"teacher_checkpoint": PRETRAINED, "teacher_sha256": digest}
    path = checkpoints.find_teacher(info.name, name, configured)
    checkpoints.load_network(teacher, path, f"{name} with {info.num_classes} classes")
    digest = files.sha256(path)
    log.info("teacher %s from %s (sha256 %s)", name, path, digest[:12])
    return teacher, {"teacher_checkpoint": str(path), "teacher_sha256": digest}


@out_of_memory_fails_the_run()
def train(cfg: CfgNode, resume: bool = False) -> dict:
    """Run one training from its config to its summary; everything is kept in the run's folder.

    Raises UserError for what the user can fix, RunError when the run cannot go on, Interrupted when it was stopped.
    """
    local_rank = distributed.start()
    try:
        folder = RunFolder.open(cfg, resume)
        device = choose_device(cfg.DEVICE, local_rank)
        set_determinism(cfg.EXPERIMENT.DETERMINISTIC)
        if device.type == "cpu":
            keep_freed_memory()
        start_logging()
        data = build_data(cfg, device)
        distiller, facts = _distiller(cfg, data.info, device)
        cache = _teacher_cache(cfg, data, distiller, facts, device) if cfg.TEACHER_CACHE.ENABLED else None
        trainer = Trainer(cfg, data, distiller, device, folder, cache)
        folder.check_teacher(facts.get("teacher_sha256"))
        distributed.barrier()  # no rank looks for the folder after another has made it
        if distributed.rank() == 0:
            folder.describe(cfg, device=device_name(device), processes=distributed.world_size(), **facts)
            start_logging(folder / "train.log")
            _announce(cfg, data, distiller, device, folder)
        else:
            logging.getLogger("mdistiller").setLevel(logging.WARNING)
        if distiller.teacher is not None and not folder.finished:
            _measure_teacher(cfg, data, distiller, device, folder)
        if resume:
            trainer.resume()
        summary = trainer.fit()
        if cache is not None:
            log.info("teacher cache: %s", cache.summary())
        if distributed.rank() == 0:
            log.info("done: %s", summary_line(summary))
        return summary
    finally:
        distributed.stop()


def _distiller(cfg, info, device):
    """The method with its networks, on the device, and what the record of the run says of the teacher."""
    set_seed(cfg.EXPERIMENT.SEED)
    student = load_student(cfg, info)
    method, teacher, facts = DISTILLERS[cfg.DISTILLER.TYPE], None, {}
    if method.needs_teacher:
        teacher, facts = load_teacher(cfg, info)
        teacher = fold_teacher(teacher, method) if cfg.DISTILLER.FOLD_TEACHER else teacher
    for network in filter(None, (student, teacher)):
        place(network, device, cfg.SOLVER.CHANNELS_LAST)
        if cfg.COMPILE:
            network.compile()
    set_seed(cfg.EXPERIMENT.SEED)  # the method's own modules do not depend on the size of the networks
    return place(build_distiller(cfg, student, teacher, info), device, cfg.SOLVER.CHANNELS_LAST), facts


def _teacher_cache(cfg, data, distiller, facts, device):
    """The cache of the run's teacher, its folder noted among the facts; None, and said, where it must run live."""
    if not distiller.needs_teacher:
        return None
    reason = why_live(distiller, data)
    if reason is not None:
        if distributed.rank() == 0:
            log.info("teacher cache: not used, the teacher runs in every step: %s", reason)
        return None
    cache = open_cache(cfg, data, distiller.teacher, facts["teacher_sha256"], device)
    facts["teacher_cache"] = str(cache.store.folder)
    return cache


def _measure_teacher(cfg, data, distiller, device, folder):
    """Write the teacher's test accuracy into run.json; near chance, say what is usually wrong."""
    distiller.eval()
    with autocast(device, cfg.SOLVER.AMP):
        batches = data.eval_batches("test", distributed.rank(), distributed.world_size())
        result = evaluate(lambda image: distiller.teacher(image).logits, batches, device)
    if distributed.rank() == 0:
        facts = folder.read_json("run.json")
        folder.write_json("run.json", facts | {"teacher_top1": result["top1"], "teacher_loss": result["loss"]})
    log.info("the teacher's test accuracy is %.2f (loss %.4f)", result["top1"], result["loss"])
    if result["top1"] < NEAR_CHANCE * 100 / data.info.num_classes:
        log.warning(
            "the teacher's accuracy of %.2f is near chance (%.2f): is its checkpoint of these classes, in this order, "
            "and of this normalisation?", result["top1"], 100 / data.info.num_classes,
        )


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
