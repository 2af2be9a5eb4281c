"""Configuration: YAML files that inherit, overrides, and errors of one line. There is no global config."""

from mdistiller.config.loading import dump_cfg, get_cfg, load_cfg

__all__ = ["dump_cfg", "get_cfg", "load_cfg"]
