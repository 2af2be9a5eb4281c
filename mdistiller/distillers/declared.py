"""The declarations of a method's class, checked when it is registered and against the task of a run."""

from collections.abc import Mapping

from yacs.config import CfgNode

from mdistiller.config.keys import KEYS
from mdistiller.config.loading import SOURCES
from mdistiller.config.stated import COMMAND_LINE
from mdistiller.data.base import VIEWS
from mdistiller.errors import UserError
from mdistiller.registry import DISTILLERS, ea_name
from mdistiller.tasks.base import OFFERS, TASKS, Task

CHOICES = {"inputs": ("logits", "features"), "sample_axis": ("sample", "image"), "teacher_mode": ("eval", "train")}
FLAGS = ("standardizes", "needs_teacher", "varying_modules")
NAMES = ("needs", "reads", "batch_terms", "image_terms", "rare_terms", "views", "own_buffers")
MAPPINGS = ("defaults", "task_aliases", "term_views", "release_weighting", "search")


def check_declarations(cls: type) -> None:
    """Raise UserError, naming class and attribute, for a declaration of a `Distiller` with a value that it cannot have.

    Such a mistake would train something else without a word.
    """

    def expect(holds, attribute, expected):
        if not holds:
            raise UserError(f"{cls.__name__}.{attribute}: expected {expected}, found {getattr(cls, attribute)!r}")

    for attribute, choices in CHOICES.items():
        expect(getattr(cls, attribute) in choices, attribute, " or ".join(map(repr, choices)))
    for attribute in FLAGS:
        expect(isinstance(getattr(cls, attribute), bool), attribute, "True or False")
    for attribute in NAMES:
        value = getattr(cls, attribute)
        names = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        expect(names, attribute, "a tuple of names, such as ('image',)")
    for attribute in MAPPINGS:
        expect(isinstance(getattr(cls, attribute), Mapping), attribute, "a dict")
    expect(all(name in OFFERS for name in cls.needs), "needs", f"a part of {tuple(OFFERS)}")
    factors = all(isinstance(factor, int | float) and factor > 1 for factor in cls.search.values())
    expect(factors, "search", "keys to factors above 1, such as {'LOSS.KD_WEIGHT': 10}")
    views = cls.views
    expect(views and views[0] == "image" and all(view in VIEWS for view in views), "views", f"a part of {VIEWS} that "
           "begins with 'image'")
    expect(all(view in views for view in cls.term_views.values()), "term_views", f"names of losses to views of {views}")


def class_for(method: type, task: Task | None) -> type:
    """The class of a method for a task; None is classification.

    Raises UserError, in one line with the methods of the task, if the task does not offer what the method needs.
    """
    suited = method.suited(task)
    missing = _missing(suited, task)
    if missing:
        kind = next((name for name, one in TASKS.items() if isinstance(task, one)), type(task).__name__)
        possible = sorted(name for name, one in DISTILLERS.items() if not _missing(one.suited(task), task)
                          and one.needs_teacher and not one.weighted)
        raise UserError(f"DISTILLER.TYPE: {method.method} needs {OFFERS[missing[0]]}, which {kind} does not offer; "
                        f"expected one of {', '.join(possible)}")
    return suited


def without_effect(cfg: CfgNode, method: type) -> list[str]:
    """The settings that a user stated and a method does not read, in words. Without them the run would be the same.

    In the node EA and in those of other methods only overrides count, since files inherit settings for several methods.
    """
    words, nodes = [], {other.config_key for other in DISTILLERS.values()} - KEYS.keys()
    elsewhere = {"EA.COMPAT"} if cfg.DISTILLER.LS else set()  # it also chooses the factor of DKD's terms
    if cfg.LOG.ENTROPY_TRACE and method.needs_teacher:  # of every method, entropies and losses of plain KD are traced
        elsewhere |= {"EA.TEMPERATURE", "KD.TEMPERATURE"}
    if cfg.DISTILLER.LS and not (method.needs_teacher and (method.inputs == "logits" or not method.standardizes)):
        words.append(f"DISTILLER.LS True has no effect: {method.method} compares no logits")
    stated = {key for key, source in cfg.__dict__.get(SOURCES, {}).items() if source == COMMAND_LINE} - elsewhere
    of_weights = [key for key in sorted(stated) if key.startswith("EA.") and not method.weighted]
    foreign = [key for key in sorted(stated) if key.split(".")[0] in nodes - {method.config_key, *method.reads}]
    if of_weights:
        words.append(f"{_have(of_weights)} no effect: {method.method} does not weigh samples, "
                     f"{ea_name(method.method)} does")
    if foreign:
        them = "it" if len(foreign) == 1 else "them"
        words.append(f"{_have(foreign)} no effect: {method.method} does not read {them}")
    return words


def _have(keys):
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'}"


def _missing(method, task):
    offers = OFFERS if task is None else task.offers
    return [name for name in (*method.views[1:], *method.needs) if name not in offers]
