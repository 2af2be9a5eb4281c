"""Object detectors."""

from mdistiller.models.detection.backbones import NAMES
from mdistiller.models.detection.detector import Detector, Pass, Sampled, stack

__all__ = ["NAMES", "Detector", "Pass", "Sampled", "stack"]
