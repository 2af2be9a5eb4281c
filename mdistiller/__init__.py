"""Knowledge distillation for image classifiers, every method also with entropy-adaptive sample weights (EA-KD)."""

__version__ = "0.1.0"
