"""Configuration: YAML files that inherit from others, overrides, and error messages of one line. Nothing is global."""

from mdistiller.config.key import Key, temperature_key, warm_up_key, weight_key
from mdistiller.config.loading import active_cfg, dump_cfg, errors_name_files, get_cfg, load_cfg

__all__ = [
    "Key", "active_cfg", "dump_cfg", "errors_name_files", "get_cfg", "load_cfg", "temperature_key", "warm_up_key",
    "weight_key",
]
