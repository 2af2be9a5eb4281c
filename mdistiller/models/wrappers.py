"""Networks of libraries and of the user with the common interface: `timm:<name>`, `torchvision:<name>`,
`<file>.py:<class>`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from mdistiller.errors import UserError, first_line
from mdistiller.plugins import import_file

LIBRARIES = ("timm", "torchvision")


def build_wrapped(
    name: str, num_classes: int, pretrained: bool = False, image_size: int | None = None, **kwargs
) -> nn.Module:
    """The network "timm:<name>", "torchvision:<name>" or "<file>.py:<class>", with a head of `num_classes`.

    `image_size` is used for networks with a fixed image size (most transformers); None keeps their default. Further
    keywords are passed to the library. Raises UserError for unknown names, wrong keywords, or weights that cannot be
    downloaded.
    """
    library, _, rest = name.partition(":")
    if library in LIBRARIES:
        networks = importlib.import_module(f"mdistiller.models.{library}_networks")  # here because it takes seconds
        return networks.build(rest, num_classes, pretrained, image_size, kwargs)
    if pretrained:
        raise UserError(f"{name}: no pretrained weights for a network from a file; expected its checkpoint")
    try:
        network = own_class(library, rest)(num_classes=num_classes, **kwargs)
    except UserError:
        raise
    except Exception as error:  # of any kind, from the user's code
        raise UserError(f"{name}: cannot be built: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}: expected a class of networks (torch.nn.Module), found {type(network).__name__}")
    return network


def own_class(file: str, name: str) -> Callable[..., nn.Module]:
    """The class or function `name` of a Python file, relative to the working folder. Raises UserError if it is missing.
    """
    path = Path(file)
    if path.suffix != ".py":
        known = ", ".join(f"{library}:<name>" for library in LIBRARIES)
        raise UserError(f"unknown network {file}:{name}; expected {known} or <file>.py:<class>")
    module = import_file(path)
    if not hasattr(module, name):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise UserError(f"{path} has no {name}; it has {', '.join(public)}")
    return getattr(module, name)
