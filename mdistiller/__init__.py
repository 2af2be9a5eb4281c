"""Knowledge distillation of image classifiers, detectors and language models, also with entropy-adaptive weights."""

__version__ = "0.1.0"
