"""Configuration: YAML files that inherit, overrides, and errors of one line. There is no global config."""

from mdistiller.config.key import Key, temperature_key, warm_up_key, weight_key
from mdistiller.config.loading import active_cfg, dump_cfg, get_cfg, load_cfg

__all__ = ["Key", "active_cfg", "dump_cfg", "get_cfg", "load_cfg", "temperature_key", "warm_up_key", "weight_key"]
