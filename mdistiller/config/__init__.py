"""Configuration: YAML files that inherit, overrides, and errors of one line. There is no global config."""

from mdistiller.config.key import Key, temperature, warm_up, weight
from mdistiller.config.loading import active_cfg, dump_cfg, get_cfg, load_cfg

__all__ = ["Key", "active_cfg", "dump_cfg", "get_cfg", "load_cfg", "temperature", "warm_up", "weight"]
