"""A teacher with its batch norms folded into the convolutions before them: fewer passes over each map."""

import logging

from torch import nn
from torch.fx.experimental.optimization import fuse

log = logging.getLogger("mdistiller")


def fold_teacher(teacher: nn.Module, method) -> nn.Module:
    """The teacher folded, in eval mode, where `method` (a class) reads logits alone, in eval mode; else as it is.

    The logits are the same up to rounding; maps before a batch norm are no longer what they were, so that methods that
    read features keep their teacher. So does a network whose forward pass cannot be traced (VGG branches on the
    image's shape). What was done is logged.
    """
    if method.inputs != "logits" or method.teacher_mode != "eval":
        log.info("the teacher is not folded: %s needs it as it is", method.method)
        return teacher
    before = _batch_norms(teacher)
    try:
        folded = fuse(teacher.eval())
    except Exception as error:  # tracing runs the network's own code on stand-ins: anything may come out
        log.info("the teacher is not folded: it cannot be traced (%s)", str(error).splitlines()[0])
        return teacher
    log.info("folded %d of the teacher's %d batch norms into convolutions", before - _batch_norms(folded), before)
    return folded


def _batch_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
