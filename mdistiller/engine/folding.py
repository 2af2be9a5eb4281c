"""Folding of a teacher's batch norms into the preceding convolutions, which saves passes over the feature maps."""

import logging

from torch import nn
from torch.fx.experimental.optimization import fuse

from mdistiller.errors import first_line

log = logging.getLogger("mdistiller")


def fold_teacher(teacher: nn.Module, method) -> nn.Module:
    """The teacher in eval mode with folded batch norms, if `method` (a class) reads only logits in eval mode.

    The logits are equal up to rounding, but the features before a batch norm change; methods that read features
    therefore get the unchanged teacher. A network whose forward pass cannot be traced (VGG branches on the image's
    shape) is also returned unchanged. The log says what was done.
    """
    if method.inputs != "logits" or method.teacher_mode != "eval":
        log.info("the teacher is not folded: %s needs the unchanged network", method.method)
        return teacher
    before = _batch_norms(teacher)
    try:
        folded = fuse(teacher.eval())
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        log.info("the teacher is not folded: it cannot be traced (%s)", first_line(error))
        return teacher
    log.info("folded %d of the teacher's %d batch norms into convolutions", before - _batch_norms(folded), before)
    return folded


def _batch_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
