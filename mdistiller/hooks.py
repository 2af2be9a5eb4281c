"""Hooks on the state dict of a module, whose names are public since PyTorch 2.5; 2.4 has them under other names."""

from collections.abc import Callable

from torch import nn


def before_loading(module: nn.Module, hook: Callable[..., None]) -> None:
    """Before each load, hook(module, state_dict, prefix, ...) may change the state dict in place."""
    if hasattr(module, "register_load_state_dict_pre_hook"):
        module.register_load_state_dict_pre_hook(hook)
    else:
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def after_saving(module: nn.Module, hook: Callable[..., None]) -> None:
    """After each `state_dict()`, hook(module, state_dict, prefix, local_metadata) may change the result in place."""
    if hasattr(module, "register_state_dict_post_hook"):
        module.register_state_dict_post_hook(hook)
    else:
        module._register_state_dict_hook(hook)
