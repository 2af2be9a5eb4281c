"""The length of a run in epochs. Does not import torch."""

from yacs.config import CfgNode

from mdistiller.errors import UserError


def num_epochs(solver: CfgNode) -> int:
    """Number of epochs of a run. With SOLVER.MAX_ITER an epoch is EVAL_PERIOD updates (0: one epoch of MAX_ITER).

    Raises UserError when MAX_ITER is not a multiple of EVAL_PERIOD.
    """
    if not solver.MAX_ITER:
        return solver.EPOCHS
    period = solver.EVAL_PERIOD or solver.MAX_ITER
    if solver.MAX_ITER % period:
        raise UserError(f"SOLVER.EVAL_PERIOD: expected a divisor of SOLVER.MAX_ITER {solver.MAX_ITER}; found {period}")
    return solver.MAX_ITER // period
