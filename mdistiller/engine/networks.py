"""The student and the teacher of a run with their initial weights."""

import logging

from torch import nn
from yacs.config import CfgNode

from mdistiller import files
from mdistiller.engine import checkpoints
from mdistiller.engine.device import place
from mdistiller.engine.folding import fold_teacher
from mdistiller.errors import UserError
from mdistiller.models import MODELS
from mdistiller.places import RANDOM_TEACHER, find_teacher
from mdistiller.tasks import Task

log = logging.getLogger("mdistiller")
PRETRAINED = "pretrained"  # value of DISTILLER.TEACHER_CHECKPOINT and STUDENT_CHECKPOINT: the library's weights
IMAGENET_CLASSES = 1000


def load_student(cfg: CfgNode, task: Task) -> nn.Module:
    """The student with random weights, or with those that DISTILLER.STUDENT_CHECKPOINT names."""
    configured = cfg.DISTILLER.STUDENT_CHECKPOINT
    student = task.network("STUDENT", pretrained=configured == PRETRAINED)
    if configured not in (None, PRETRAINED):
        name = f"{cfg.DISTILLER.STUDENT} with {task.info.num_classes} classes"
        checkpoints.load_to_train(student, configured, name, cfg.DISTILLER.STUDENT_WEIGHTS, part=True)
    return student


def load_teacher(cfg: CfgNode, task: Task) -> tuple[nn.Module, dict]:
    """The teacher with its weights, and their source and SHA-256 for run.json.

    Without DISTILLER.TEACHER_CHECKPOINT, teachers for the 1,000 classes of ImageNet get torchvision's weights. Raises
    UserError when there is no checkpoint, or when it does not fit the network or the classes.
    """
    name, configured, info = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT, task.info
    if configured is None and info.family == "imagenet" and info.num_classes == IMAGENET_CLASSES:
        configured = PRETRAINED
    teacher = task.network("TEACHER", pretrained=configured == PRETRAINED)
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
    path = find_teacher(info.name, _registered(name, info.family), configured)
    checkpoints.load_to_train(teacher, path, f"{name} with {info.num_classes} classes", cfg.DISTILLER.TEACHER_WEIGHTS)
    digest = files.sha256(path)
    log.info("teacher %s from %s (sha256 %s)", name, path, digest[:12])
    return teacher, {"teacher_checkpoint": str(path), "teacher_sha256": digest}


def _registered(name, family):
    """The name of a network as it is registered; names of checkpoint files use this spelling."""
    return MODELS[family].canonical(name) if name in MODELS.get(family, ()) else name


def ready(network: nn.Module, cfg: CfgNode, device) -> nn.Module:
    """Move a network to the device in the memory format of SOLVER.CHANNELS_LAST, and compile it if COMPILE is set."""
    place(network, device, cfg.SOLVER.CHANNELS_LAST)
    if cfg.COMPILE:
        network.compile()
    return network


def ready_teacher(cfg: CfgNode, task: Task, method, device) -> tuple[nn.Module, dict]:
    """The teacher of a method (a class), folded and compiled as configured, and the metadata of `load_teacher`."""
    teacher, metadata = load_teacher(cfg, task)
    teacher = fold_teacher(teacher, method) if cfg.DISTILLER.FOLD_TEACHER else teacher
    return ready(teacher, cfg, device), metadata
