"""Tasks define what a sample is: an image, a box proposal or a token. Trainer and methods only use the class `Task`."""

import importlib
import pkgutil

from mdistiller.tasks.base import TASKS, Task, TaskOutput

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_task(cfg, info) -> Task:
    """The task of TASK.TYPE, or that of the data set (`info.task`), or classification if both are None."""
    return TASKS[cfg.TASK.TYPE or getattr(info, "task", None) or "classification"](cfg, info)


__all__ = ["TASKS", "Task", "TaskOutput", "build_task"]
