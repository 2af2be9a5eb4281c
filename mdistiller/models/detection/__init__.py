"""Object detectors."""

from mdistiller.models.detection.backbones import LEVELS, NAMES
from mdistiller.models.detection.detector import Detector, Pass, Sampled, stack
from mdistiller.models.detection.script import traced

__all__ = ["LEVELS", "NAMES", "Detector", "Pass", "Sampled", "stack", "traced"]
