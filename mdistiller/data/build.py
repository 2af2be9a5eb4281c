"""Registry of data sets, and the one way to build one."""

import torch
from yacs.config import CfgNode

from mdistiller.errors import UserError
from mdistiller.registry import Registry

DATASETS = Registry("DATASET.TYPE")  # name -> function(cfg, device) that returns the data


def build_data(cfg: CfgNode, device: torch.device | str):
    """The data set DATASET.TYPE, on `device`. Raises UserError for an unknown name or missing or damaged files."""
    build = DATASETS[cfg.DATASET.TYPE]
    try:
        return build(cfg, device)
    except OSError as error:  # what cannot be read, or is no name of a file
        raise UserError(f"DATASET.ROOT {cfg.DATASET.ROOT}: {error}") from error
