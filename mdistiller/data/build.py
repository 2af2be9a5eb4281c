"""Registry of data sets, and the one way to build one."""

import torch
from yacs.config import CfgNode

from mdistiller.registry import Registry

DATASETS = Registry("DATASET.TYPE")  # name -> function(cfg, device) that returns the data


def build_data(cfg: CfgNode, device: torch.device | str):
    """The data set DATASET.TYPE, on `device`. Raises UserError for an unknown name or missing or damaged files."""
    return DATASETS[cfg.DATASET.TYPE](cfg, device)
