"""Object detectors. Their modules are imported when a name is first used: with torchvision they take seconds."""

import importlib

LEVELS = ("p2", "p3", "p4", "p5")  # maps that the heads read, from the finest on

_MODULES = {
    "NAMES": "backbones", "Detector": "detector", "Pass": "detector", "Sampled": "detector",
    "load_library_body": "pretrained", "stack": "detector", "traced": "script",
}
__all__ = ["LEVELS", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
