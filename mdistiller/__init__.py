"""Knowledge distillation of image classifiers, detectors and language models, also with entropy-adaptive weights.

For your own training loop: `distill`, `from_config`, `methods` and `diagnose`, and the pure functions of `losses`
(docs/library.md). Modules are imported when they are used.
"""

import importlib

__version__ = "0.1.0"
_PLACES = {  # public name -> the module that has it
    "Finding": "mdistiller.library.doctor",
    "diagnose": "mdistiller.library.doctor",
    "distill": "mdistiller.library",
    "ea_weight": "mdistiller.losses",
    "from_config": "mdistiller.library",
    "losses": "mdistiller.losses",
    "methods": "mdistiller.library",
}
__all__ = list(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'mdistiller' has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
