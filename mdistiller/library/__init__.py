"""The methods in your own training loop: `distill`, `from_config` and `methods`; `doctor` looks for faults."""

from mdistiller.library.build import distill, from_config, methods
from mdistiller.library.loop import Configured, Distillation
from mdistiller.library.step import Evaluated, Step

__all__ = ["Configured", "Distillation", "Evaluated", "Step", "distill", "from_config", "methods"]
