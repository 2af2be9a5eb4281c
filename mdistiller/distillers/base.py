"""What every method shares: it runs the networks, weighs each sample's loss, and reduces to scalars.

A method is one file: a pure function, and a class that declares what it needs and returns one loss per sample.
"""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.config.loading import OwnNodes
from mdistiller.distillers.chunks import entropies_around, losses_in_chunks, rows_stand_alone
from mdistiller.distillers.ea import ALONE, SampleWeights, entropy, weigh_entropies
from mdistiller.distillers.reduce import weighted_mean
from mdistiller.errors import UserError
from mdistiller.functional import group_mean, mean_by_group, standardize
from mdistiller.registry import DISTILLERS, ea_name
from mdistiller.tasks import Task, TaskOutput
from mdistiller.tasks.classification import Classification

LOG_1000 = math.log(1000)  # the greatest weight bound of ImageNet's 1,000 classes


def register(name: str, *aliases: str):
    """Decorator: register a method under `name`, and the same class with sample weighting on under EA-`name`."""

    def add(cls):
        if "config_key" not in cls.__dict__:
            cls.config_key = name
        cls.method, cls.weighted = name, False
        DISTILLERS.register(name)(cls)
        weighted = type(f"EA{cls.__name__}", (cls,), {"weighted": True, "__doc__": cls.__doc__})
        weighted.__module__ = cls.__module__
        DISTILLERS.register(ea_name(name))(weighted)
        for alias in aliases:
            DISTILLERS.alias(alias, name)
            DISTILLERS.alias(ea_name(alias), ea_name(name))
        for task, alias in cls.task_aliases.items():
            DISTILLERS.alias(alias, name, task)
            DISTILLERS.alias(ea_name(alias), ea_name(name), task)
        return cls

    return add


class Distiller(nn.Module):
    """A student, a frozen teacher outside the module's state, and the losses between them.

    Subclasses set `defaults` (their config node), read it in `build`, and return per-sample losses from
    `sample_losses`; the declarations below say what else they need. In train mode `forward(**batch)` returns
    `(logits_student, losses)`, in eval mode `forward(image)` returns the student's logits.
    """

    defaults: Mapping = {}  # its config node: keys by name, each a `Key` (or a plain default), in nested dicts
    config_key: str  # the node of the config that holds the method's settings; its registered name unless set
    reads: tuple = ()  # other methods' config nodes that it reads; the rest raise an error
    method: str  # its registered name, without EA-
    task_aliases: Mapping = {}  # TASK.TYPE -> another name that the method has in that task
    weighted = False  # the EA- variants weigh each sample
    batch_terms: tuple = ()  # losses without a per-sample form: scalars, never weighted
    views: tuple = ("image",)  # images of the batch that pass through both networks
    term_views: Mapping = {}  # loss name -> the view whose logits weigh it, where that is not "image"
    inputs = "logits"  # or "features": what the losses read of the networks' outputs
    sample_axis = "sample"  # or "image": one loss an image; an image of several samples gets their mean weight
    standardizes = True  # DISTILLER.LS: standardized logits reach `sample_losses` (logit methods)
    needs_teacher = True
    teacher_mode = "eval"  # or "train": batch statistics, and running statistics that move
    own_buffers: tuple = ()  # prefixes of buffers the method synchronizes itself; DDP skips them
    varying_modules = False  # some parameters take no part in some steps (DDP must look for them)
    release_weighting: Mapping = {}  # EA.COMPAT release: what the published code uses in place of the paper's

    def __init__(
        self, cfg: CfgNode, student: nn.Module, teacher: nn.Module | None, data_info=None, task: Task | None = None
    ):
        super().__init__()
        if self.needs_teacher and teacher is None:
            raise UserError(f"DISTILLER.TYPE: {self.method} needs a teacher (DISTILLER.TEACHER)")
        self.cfg = OwnNodes(cfg, type(self))
        self.data_info = as_data_info(data_info)
        self.task = task or Classification(cfg, self.data_info)
        self.student = student
        object.__setattr__(self, "teacher", teacher)  # not a submodule: outside state_dict and DDP
        if teacher is not None:
            teacher.requires_grad_(False)
        self.logit_standardization = bool(cfg.DISTILLER.LS)
        self.ce_weight, self.label_smoothing = 1.0, cfg.SOLVER.LABEL_SMOOTHING
        # Of the last step, on the device, for the log: what its sample weights were (of the first view) and, where the
        # task tells parts of the samples apart, their weighted losses; and what the task says of its samples.
        self.monitor: dict[str, Tensor] = {}
        self.progress: dict[str, Tensor] = {}
        self._choose_weighting(cfg.EA)
        self.build(self.cfg[self.config_key] if self.config_key in cfg else self.cfg)
        self.train()

    # --- what a method defines -------------------------------------------------------------------------------------

    def build(self, cfg: CfgNode) -> None:
        """Read the method's own node and make its modules; `self.cfg` has the general nodes and those of `reads`."""

    def sample_losses(self, student, teacher, **batch) -> dict[str, Tensor]:
        """Losses by name, (B,) each (a scalar where the name is in `batch_terms`), config weights included.

        `student` and `teacher` are `Output(logits, features)`, in tuples by view when the method has several `views`.
        `batch` holds target, epoch (from 1) and whatever else the loader yields.
        """
        return {}

    @classmethod
    def check(cls, cfg: CfgNode) -> tuple[str, str] | None:
        """(key, what is wrong) where keys of the node do not go together, each within its own range; else None."""
        return None

    # --- the step --------------------------------------------------------------------------------------------------

    def forward(self, image: Any = None, target: Tensor | None = None, epoch: int = 1,
                logits_teacher: Tensor | None = None, **batch):
        """Train mode: (logits_student (n, C), {name: scalar}) of a batch. Eval mode: `predict(image)`.

        What else the batch holds goes to the task and to the method by name; `logits_teacher` (n, C) stands in for the
        teacher's forward pass where a method reads logits only.
        """
        batch |= {"image": image, "target": target}
        if not self.training:
            return self.predict(self.task.inputs(batch, "image"))
        views = [self._inputs(batch, view) for view in self.views]
        students = [self.run_student(view) for view in views]
        if logits_teacher is not None:
            teachers = [TaskOutput(logits_teacher)]
        elif self.needs_teacher:
            teachers = [self.run_teacher(*pair) for pair in zip(views, students, strict=True)]
        else:
            teachers = []
        logits = students[0].logits
        with torch.autocast(logits.device.type, enabled=False):
            if rows_stand_alone(self, students[0]):
                losses = losses_in_chunks(self, students[0], teachers[0] if teachers else None, epoch, batch)
            else:
                students, teachers = ([out.in_full() for out in map(as_task_output, outputs)]
                                      for outputs in (students, teachers))
                losses = self._losses(students, teachers, epoch, batch)
        return logits, losses

    def _losses(self, students, teachers, epoch, batch):
        students, teachers = ([self.full_precision(out) for out in outputs] for outputs in (students, teachers))
        target = self.task.target(batch, students[0])
        losses = self.task.supervised(students, target, self.label_smoothing)
        losses = {name: self.supervised_weight(name) * loss for name, loss in losses.items()}
        self.progress = self.task.progress(students[0].logits.detach(), target)
        self.monitor = {}
        if not self.needs_teacher:
            return losses
        weights = {view: self._weigh(*pair) for view, *pair in zip(self.views, students, teachers, strict=True)}
        students, teachers = ([self.standardized(output) for output in outputs] for outputs in (students, teachers))
        group, importance = students[0].group, students[0].importance
        if len(self.views) == 1:
            (students,), (teachers,) = students, teachers
        terms = self.sample_losses(students, teachers, **batch | {"target": target, "epoch": epoch})
        for name, loss in terms.items():
            if name in losses:
                raise ValueError(f"{self.method}: sample_losses: {name!r} is a loss of the task; choose another name")
            if name not in self.batch_terms:
                weight = weights[self.term_views.get(name, "image")]
                if self.sample_axis == "image" and group is not None:
                    weight, importance = mean_by_group(weight, group, len(loss), empty=1.0), None
                weight = weight if importance is None else weight * importance
                each, loss = loss, weighted_mean(loss, weight, name)
                if self.task.parts and self.sample_axis == "sample":
                    self.monitor["loss"] = self.monitor.get("loss", 0) + (weight * each).detach()
            losses[name] = loss
        return losses

    def supervised_weight(self, name: str) -> float:
        """What multiplies a loss of the task."""
        return self.ce_weight if name == "ce" else 1.0

    def standardized(self, output: TaskOutput) -> TaskOutput:
        """The output as `sample_losses` gets it: with standardized logits where DISTILLER.LS asks for them."""
        wanted = self.logit_standardization and self.standardizes and self.inputs == "logits"
        return output._replace(logits=standardize(output.logits)) if wanted else output

    def _inputs(self, batch, view):
        try:
            return self.task.inputs(batch, view)
        except ValueError as error:
            raise ValueError(f"{self.method} {error}") from None

    def run_student(self, inputs: Any) -> TaskOutput:
        """The student's output for one view."""
        return self.task.run_student(self.student, inputs)

    def run_teacher(self, inputs: Any, student: TaskOutput | None = None) -> TaskOutput:
        """The teacher's output for one view, on the samples of the student's, without gradient.

        Not in inference mode: the targets of a mean squared error are saved for the backward pass.
        """
        with torch.no_grad():
            return self.task.run_teacher(self.teacher, inputs, student)

    def predict(self, inputs: Any):
        """What the deployed network says in eval mode: for an image (B, 3, H, W), its logits (B, C)."""
        output = self.deployed()(inputs)
        return getattr(output, "logits", output)

    def deployed(self) -> nn.Module:
        """The network that is evaluated, averaged, and kept apart from the run."""
        return self.student

    def sample_weight(self, logits_student: Tensor, logits_teacher: Tensor, group: Tensor | None = None) -> Tensor:
        """Weight of each sample's losses, (n,): EA for the weighted variant of a method, else ones.

        `group` (n,): which samples belong together, where EA.LEVEL is group.
        """
        if not self.weighted:
            return torch.ones(len(logits_teacher), device=logits_teacher.device, dtype=logits_teacher.dtype)
        entropies = self.entropy(logits_student), self.entropy(logits_teacher)
        return self.weigh(*entropies, logits_teacher.shape[-1], group)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropies (n,) that weights come from, in nats, of logits (n, C)."""
        return entropy(standardize(logits) if self.weigh_standardized else logits, self.weight_temperature)

    def weigh(self, student: Tensor, teacher: Tensor, num_classes: int, group: Tensor | None = None,
              around: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Weights (n,) of samples by their entropies (n,).

        `around` holds (m,) entropies of student and teacher, and groups, of further samples that count in the mean
        entropies of the groups.
        """
        bound = math.log(num_classes) if self.weight_bound is None else float(self.weight_bound)
        seen = student, teacher
        if around is not None:
            every = torch.cat([group, around[2]])
            seen = [group_mean(torch.cat(pair), every)[: len(group)] for pair in zip(seen, around[:2], strict=True)]
            group = None
        weight = weigh_entropies(*seen, self.weight_kind, bound, group, self.weight_level)
        self.monitor = self.monitor or SampleWeights(weight, student, teacher)._asdict()  # the first view's
        return weight

    def _weigh(self, student, teacher):
        group = {"group": student.group} if self.weigh_groups and student.group is not None else {}
        logits = student.logits.detach(), teacher.logits.detach()
        if student.surroundings is None or not self.weighted:
            return self.sample_weight(*logits, **group)
        around = entropies_around(self, student, teacher)
        return self.weigh(*map(self.entropy, logits), logits[1].shape[-1], student.group, around)

    # --- bookkeeping -----------------------------------------------------------------------------------------------

    def train(self, mode: bool = True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.train(mode and self.teacher_mode == "train")
        return self

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return self

    def learnable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains: the student's parameters, then those of the method's own modules."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def extra_parameters(self) -> int:
        """How many trained parameters the method adds to the student."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(parameter.numel() for parameter in self.learnable_parameters() if id(parameter) not in own)

    @torch.no_grad()
    def dry_run(self, input_size: int | tuple[int, int] | None = None):
        """(student's output, teacher's output) of one blank example, in eval mode so that no statistic moves.

        Departs from mdistiller, whose dry run in train mode shifts the running statistics of the loaded teacher.
        """
        outputs = []
        for network, run in ((self.student, self.run_student), (self.teacher, self.run_teacher)):
            inputs = self.task.blank_inputs(input_size, next(network.parameters()))
            modes = [(module, module.training) for module in network.modules()]
            network.eval()
            outputs.append(run(inputs, *outputs))
            for module, mode in modes:
                module.training = mode
        return tuple(outputs)

    def feature_shapes(self, input_size=None, key: str = "feats") -> tuple[list, list]:
        """Shapes (1, C, H, W) of the student's and the teacher's `features[key]` for the data's image size."""
        return tuple([tuple(f.shape) for f in output.features[key]] for output in self.dry_run(input_size))

    def _choose_weighting(self, cfg):
        release, self.as_released = {}, cfg.COMPAT == "release"  # a method may have settings of its own in the release
        if self.weighted and self.as_released:
            if not self.release_weighting:
                raise UserError(f"EA.COMPAT: no released code weighs {self.method}; expected paper")
            release = self.release_weighting
        bound = cfg.UPPER_BOUND if cfg.UPPER_BOUND != "log_c" else None
        if "upper_bound" in release:
            imagenet = self.data_info.name == "imagenet"
            bound = release.get("upper_bound_imagenet" if imagenet else "upper_bound", release["upper_bound"])
        self.weight_bound = bound
        self.weight_kind = cfg.KIND
        self.weight_temperature = release.get("temperature", cfg.TEMPERATURE)
        self.weight_level, self.weigh_groups = cfg.LEVEL, cfg.LEVEL not in ALONE
        self.weigh_standardized = cfg.LOGITS == "standardized"
        if release:  # the release weighs from the logits that it distils
            self.weigh_standardized = self.logit_standardization and release.get("logits") == "standardized"

    def full_precision(self, output) -> TaskOutput:
        """The output with everything the losses read in float32 (wider stays as it is)."""
        output = as_task_output(output)
        features = _map(_wide, output.features) if self.inputs == "features" else output.features
        return output._replace(logits=_wide(output.logits), features=features, losses=_map(_wide, output.losses))


class Vanilla(Distiller):
    """Training with cross-entropy alone, as teachers and plain students are trained; there is no teacher."""

    needs_teacher = False


register("NONE")(Vanilla)


def as_task_output(output) -> TaskOutput:
    """What a network or a task returns, as a `TaskOutput`."""
    return output if isinstance(output, TaskOutput) else TaskOutput(output.logits, output.features)


def as_data_info(info) -> SimpleNamespace:
    """`info` (an object, a mapping or None) as a namespace that has every field a method may read."""
    fields = {} if info is None else info if isinstance(info, Mapping) else {k: getattr(info, k, None) for k in _FIELDS}
    return SimpleNamespace(**{field: fields.get(field) for field in _FIELDS})


_FIELDS = ("name", "num_classes", "num_train", "image_size", "targets")


def _map(fn, value):
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return type(value)((key, _map(fn, child)) for key, child in value.items())  # it may explain what it lacks
    return [_map(fn, child) for child in value] if isinstance(value, list | tuple) else value


def _wide(tensor):
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

