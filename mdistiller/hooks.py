"""Hooks on the state dict of a module. PyTorch 2.4 has them too, but only since 2.5 are their names public."""

from collections.abc import Callable

from torch import nn


def before_loading(module: nn.Module, hook: Callable[..., None]) -> None:
    """Before each load, hook(module, state_dict, prefix, ...) may change the state dict in place."""
    module._register_load_state_dict_pre_hook(hook, with_module=True)


def after_saving(module: nn.Module, hook: Callable[..., None]) -> None:
    """After each `state_dict()`, hook(module, state_dict, prefix, local_metadata) may change the result in place."""
    module._register_state_dict_hook(hook)
