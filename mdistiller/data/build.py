"""The registry of data sets, and the function that builds them."""

import torch
from yacs.config import CfgNode

from mdistiller.errors import UserError
from mdistiller.registry import Registry, UnknownName

DATASETS = Registry("data set")  # name -> function(cfg, device) that returns the data


def build_data(cfg: CfgNode, device: torch.device | str):
    """The data set DATASET.TYPE on `device`. Raises UserError for an unknown name, or for missing or damaged files."""
    try:
        build = DATASETS[cfg.DATASET.TYPE]
    except UnknownName as error:
        raise UserError(f"DATASET.TYPE: {error}") from None
    try:
        return build(cfg, device)
    except OSError as error:  # a file that cannot be read, or an invalid file name
        raise UserError(f"DATASET.ROOT {cfg.DATASET.ROOT}: {error}") from error
