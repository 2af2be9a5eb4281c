"""The base class of all methods: it runs the networks, weighs each sample's loss and reduces the losses to scalars.

A method is a pure function in a file of `mdistiller.losses`, and a class in a file here that declares what it needs and
returns one loss per sample.
"""

import math
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.config.loading import OwnNodes
from mdistiller.distillers.chunks import entropies_around, losses_in_chunks, rows_stand_alone
from mdistiller.distillers.declared import check_declarations
from mdistiller.distillers.ea import SampleWeights, Weighting
from mdistiller.distillers.features import shapes_of_maps
from mdistiller.distillers.reduce import losses_by_name, weighted_mean
from mdistiller.errors import UserError
from mdistiller.functional import mean_by_group, standardize, wide
from mdistiller.models.base import any_parameter, as_output, modes_kept, with_stem
from mdistiller.precision import teachers_own_precision, unless_half
from mdistiller.registry import DISTILLERS, ea_name
from mdistiller.streams import Branch
from mdistiller.tasks import Task, TaskOutput
from mdistiller.tasks.classification import Classification

LOG_1000 = math.log(1000)  # upper bound of the entropy with ImageNet's 1,000 classes


def register(name: str, *aliases: str):
    """Decorator: register a method under `name`, and the same class with sample weighting on under EA-`name`.

    Raises UserError for a declaration of the class with a wrong value, see `check_declarations`.
    """

    def add(cls):
        check_declarations(cls)
        if "config_key" not in cls.__dict__:
            cls.config_key = name
        cls.method, cls.weighted = name, False
        DISTILLERS.register(name)(cls)
        weighted = type(f"EA{cls.__name__}", (cls,), {"weighted": True, "__doc__": cls.__doc__})
        weighted.__module__ = cls.__module__
        names = vars(sys.modules.get(cls.__module__, SimpleNamespace()))  # where pickle looks for classes
        names.setdefault(cls.__name__, cls)
        names[weighted.__name__] = weighted
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
    """A student, a frozen teacher, which is not part of the module's state, and the losses between them.

    Subclasses set `defaults` (their config node), read it in `build`, and return per-sample losses from
    `sample_losses`; the declarations below say what else they need. In train mode `forward(**batch)` returns
    `(logits_student, losses)`, in eval mode `forward(image)` returns the student's logits.
    """

    defaults: Mapping = {}  # the method's config node: nested dicts of keys, each a `Key` or a plain default
    config_key: str  # name of that node; the registered name of the method unless set
    search: Mapping = {}  # key that tools/tune.py varies, by name within the node (or in full) -> factor up and down
    reads: tuple = ()  # config nodes of other methods that the method reads; reading any other one is an error
    method: str  # the registered name, without EA-
    task_aliases: Mapping = {}  # TASK.TYPE -> another name of the method in that task
    weighted = False  # whether samples are weighted by EA; True in the EA- variants
    batch_terms: tuple = ()  # names of losses without a per-sample form: scalars, never weighted
    views: tuple = ("image",)  # names of the batch's images that pass through both networks
    term_views: Mapping = {}  # loss name -> the view whose logits give its weights; "image" if absent
    needs: tuple = ()  # what the task must offer besides logits, names of `mdistiller.tasks.base.OFFERS`
    inputs = "logits"  # which outputs of the networks the losses read: "logits" or "features"
    sample_axis = "sample"  # "sample": one loss per sample; "image": one per image, with the mean weight of its samples
    image_terms: tuple = ()  # names of losses with one value per image, beside others with one value per sample
    standardizes = True  # whether a logit method gets standardized logits under DISTILLER.LS; False: it does so itself
    needs_teacher = True
    teacher_mode = "eval"  # "eval" or "train"; in train mode batch norms use and update batch statistics
    own_buffers: tuple = ()  # prefixes of buffers the method synchronizes itself; DDP skips them
    rare_terms: tuple = ()  # names of losses that are exactly 0 in some steps by design
    varying_modules = False  # whether some parameters are unused in some steps (DDP must then search for them)
    warmup: float = 0  # epochs after which no warm-up or ramp of the method changes its losses; `build` may set it
    release_weighting: Mapping = {}  # settings of the published code, which EA.COMPAT release uses

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
        # For the log, of the last step and on the device: weights and entropies of the samples (first view) and, if the
        # task names parts of the samples, their weighted losses; and the task's own values, such as hits.
        self.monitor: dict[str, Tensor] = {}
        self.progress: dict[str, Tensor] = {}
        self.as_released = cfg.EA.COMPAT == "release"  # some methods have further settings of the published code
        self.weighting = choose_weighting(cfg, type(self), self.data_info.name)
        self.build(self.cfg[self.config_key] if self.config_key in cfg else self.cfg)
        _join_the_student(self)
        self.train()

    def build(self, cfg: CfgNode) -> None:
        """Make the method's modules from its own node `cfg`. `self.cfg` has the general nodes and those of `reads`."""

    def prepare(self, data) -> None:
        """Look at the training data once, before the first step of a run, in eval mode.

        `data` has `info` and `plain_batches`, see `mdistiller.data.base.Data`; what is learned belongs into buffers.
        """

    def sample_losses(self, student, teacher, **batch) -> dict[str, Tensor]:
        """Losses by name, each (B,), or a scalar if the name is in `batch_terms`, multiplied by their config weights.

        `student` and `teacher` are outputs with `logits` and `features` (see `TaskOutput`), or tuples of one for each
        of several `views`. `batch` holds target, epoch (from 1) and everything else that the loader yields.
        """
        return {}

    @classmethod
    def suited(cls, task: Task | None) -> "type[Distiller]":
        """The class to use in a task instead of this one; None is classification."""
        return cls

    @classmethod
    def check(cls, cfg: CfgNode) -> tuple[str, str] | None:
        """(key, problem) if values of the node's keys, each within its range, contradict each other; else None."""
        return None

    # --- the step --------------------------------------------------------------------------------------------------

    def forward(self, image: Any = None, target: Tensor | None = None, epoch: int = 1,
                logits_teacher: Tensor | None = None, **batch):
        """Train mode: (logits_student (n, C), {name: scalar}) of a batch. Eval mode: `predict(image)`.

        Further entries of the batch are passed by name to the task and to the method. `logits_teacher` (n, C), if
        given, or (V, n, C) for V views, replaces the teacher's forward pass for methods that read logits only.
        """
        batch |= {"image": image, "target": target}
        if not self.training:
            return self.predict(self.task.inputs(batch, "image"))
        views = [_inputs_of(self, batch, view) for view in self.views]
        beside = Branch(not self.task.teacher_waits and type(self).run_teacher is Distiller.run_teacher)
        students = [self.run_student(view) for view in views]
        teachers = []
        if logits_teacher is not None:
            stored = logits_teacher if logits_teacher.dim() == 3 else logits_teacher[None]
            teachers = [TaskOutput(logits) for logits in stored.unbind()]
        elif self.needs_teacher:
            with beside, teachers_own_precision(self.cfg, students[0].logits.device):
                teachers = [self.run_teacher(*pair) for pair in zip(views, students, strict=True)]
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
        for name, loss in losses_by_name(terms, self.method).items():
            if name in losses:
                raise UserError(f"{self.method}: sample_losses: {name!r} is a loss of the task; choose another name")
            if name not in self.batch_terms:
                weight = weights[self.term_views.get(name, "image")]
                per_image = group is not None and (self.sample_axis == "image" or name in self.image_terms)
                if per_image:
                    weight = mean_by_group(weight, group, len(loss), empty=1.0)
                weight = weight if importance is None or per_image else weight * importance
                each, loss = loss, weighted_mean(loss, weight, name, self.method)
                if self.task.parts and not per_image:
                    self.monitor["loss"] = self.monitor.get("loss", 0) + (weight * each).detach()
            losses[name] = loss
        return losses

    def supervised_weight(self, name: str) -> float:
        """The factor of a loss of the task."""
        return self.ce_weight if name == "ce" else 1.0

    def standardized(self, output: TaskOutput) -> TaskOutput:
        """The output as `sample_losses` gets it: standardized logits under DISTILLER.LS, if the method wants them."""
        wanted = self.logit_standardization and self.standardizes and self.inputs == "logits"
        return output._replace(logits=standardize(output.logits)) if wanted else output

    def run_student(self, inputs: Any) -> TaskOutput:
        """The student's output for one view."""
        return with_stem(self.task.run_student(self.student, inputs))

    def run_teacher(self, inputs: Any, student: TaskOutput | None = None) -> TaskOutput:
        """The teacher's output for one view, for the samples of the student's output, without gradient.

        Inference mode is not possible here, because a mean squared error saves its target for the backward pass.
        """
        with torch.no_grad():
            return with_stem(self.task.run_teacher(self.teacher, inputs, student))

    def predict(self, inputs: Any):
        """The output of the deployed network in eval mode: for images (B, 3, H, W), logits (B, C)."""
        output = self.deployed()(inputs)
        output = as_output(self.student, output) if isinstance(output, tuple) else output
        return getattr(output, "logits", output)

    def deployed(self) -> nn.Module:
        """The network that is evaluated, averaged (SOLVER.EMA) and saved on its own."""
        return self.student

    def sample_weight(self, logits_student: Tensor, logits_teacher: Tensor, group: Tensor | None = None) -> Tensor:
        """Weight of each sample's losses, (n,): that of EA for the weighted variant of a method, else 1.

        `group` (n,) is the group of each sample, if EA.LEVEL weighs by groups.
        """
        if not self.weighted:
            return torch.ones(len(logits_teacher), device=logits_teacher.device, dtype=logits_teacher.dtype)
        entropies = map(self.weighting.entropy, (logits_student, logits_teacher))
        return self.weigh(*entropies, logits_teacher.shape[-1], group)

    def weigh(self, student: Tensor, teacher: Tensor, num_classes: int, group: Tensor | None = None,
              around: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Weights (n,) from the entropies (n,), see `Weighting.weights`; those of the first view go to `monitor`."""
        weight = self.weighting.weights(student, teacher, num_classes, group, around)
        self.monitor = self.monitor or SampleWeights(weight, student, teacher)._asdict()
        return weight

    def _weigh(self, student, teacher):
        group = {"group": student.group} if self.weighting.by_group and student.group is not None else {}
        logits = student.logits.detach(), teacher.logits.detach()
        if student.surroundings is None or not self.weighted:
            return self.sample_weight(*logits, **group)
        around = entropies_around(self, student, teacher)
        return self.weigh(*map(self.weighting.entropy, logits), logits[1].shape[-1], student.group, around)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.train(mode and self.teacher_mode == "train")
        return self

    def _apply(self, fn, recurse=True):
        if recurse:
            _apply_to_parts(self, fn)
        return super()._apply(unless_half(fn), recurse=False)

    @property
    def settled_epoch(self) -> int:
        """The first epoch (from 1) after all warm-ups of the method."""
        return 1 + int(self.warmup)

    def learnable_parameters(self) -> list[nn.Parameter]:
        """The parameters for the optimiser: those of the student, then those of the method's own modules."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def extra_parameters(self) -> int:
        """Number of trained parameters that the method adds to those of the student."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(parameter.numel() for parameter in self.learnable_parameters() if id(parameter) not in own)

    def dry_run(self, input_size: int | tuple[int, int] | None = None) -> tuple:
        """(student's output, teacher's output) for one blank example, in eval mode so that no statistics change.

        Departs from mdistiller, whose dry run in train mode changes the running statistics of the loaded teacher.
        """
        outputs = []
        for network, run in ((self.student, self.run_student), (self.teacher, self.run_teacher)):
            inputs = self.task.blank_inputs(input_size, any_parameter(network, self.student, self.teacher))
            with torch.no_grad(), modes_kept(network):
                network.eval()
                outputs.append(run(inputs, *outputs))
        return tuple(outputs)

    def feature_shapes(self, input_size=None, key: str = "feats") -> tuple[list, list]:
        """Shapes (1, C, H, W) of `features[key]` of student and teacher; UserError for networks without such maps."""
        return shapes_of_maps(self, self.dry_run(input_size), key)

    def full_precision(self, output) -> TaskOutput:
        """The output with everything that the losses read in float32; float64 stays float64."""
        output = as_task_output(output)
        features = wide(output.features) if self.inputs == "features" else output.features
        return output._replace(logits=wide(output.logits), features=features, losses=wide(output.losses),
                               regression=wide(output.regression))


def _join_the_student(distiller):
    """Move the method's own modules, parameters and buffers to the student's device, where a user may have put it.

    They are float64 if the student is.
    """
    parameters = [*distiller.student.parameters()]
    device = parameters[-1].device if parameters else torch.device("cpu")  # of several devices, that of the logits
    if device.type == "meta":
        return  # which would delete initial values
    in_double = {parameter.dtype for parameter in parameters} == {torch.float64}

    def moved(tensor):
        return tensor.to(device, torch.float64 if in_double and tensor.is_floating_point() else tensor.dtype)

    for module in distiller.children():
        if module is not distiller.student:
            module._apply(moved)
    distiller._apply(moved, recurse=False)


def _apply_to_parts(distiller, fn):
    """Change dtype or device of the networks and of the method's modules, which are not made half."""
    for module in distiller.children():
        module._apply(fn if module is distiller.student else unless_half(fn))
    if distiller.teacher is not None:
        distiller.teacher._apply(fn)


def _inputs_of(distiller, batch, view):
    try:
        return distiller.task.inputs(batch, view)
    except ValueError as error:
        raise ValueError(f"{distiller.method} {error}") from None


class Vanilla(Distiller):
    """Training with cross-entropy alone and without a teacher, for teachers and for students without distillation."""

    needs_teacher = False


register("NONE")(Vanilla)


def choose_weighting(cfg: CfgNode, method: type[Distiller], data_name: str | None) -> Weighting:
    """The settings of the node EA, or with EA.COMPAT release those of the method's published code.

    Two settings win over those of the published code: EA.UPPER_BOUND, if it is stated, and EA.LOGITS standardized.
    EA.LOGITS raw does not, because it is the default, which the records of runs state too. Raises UserError for
    EA.COMPAT release if no code was published for the method.
    """
    release = {}
    if method.weighted and cfg.EA.COMPAT == "release":
        release = method.release_weighting
        if not release:
            raise UserError(f"EA.COMPAT: no released code weighs {method.method}; expected paper")
    bound = cfg.EA.UPPER_BOUND
    if bound is None:
        key = "upper_bound_imagenet" if data_name == "imagenet" else "upper_bound"
        bound = release.get(key, release.get("upper_bound"))
    bound = None if bound == "log_c" else bound
    standardized = cfg.EA.LOGITS == "standardized"
    if release:  # the published code takes the entropies of the logits that it distils
        standardized |= bool(cfg.DISTILLER.LS) and release.get("logits") == "standardized"
    temperature = release.get("temperature", cfg.EA.TEMPERATURE)
    return Weighting(cfg.EA.KIND, temperature, bound, cfg.EA.LEVEL, standardized)


def as_task_output(output) -> TaskOutput:
    """The output of a network or of a task as a `TaskOutput`."""
    return output if isinstance(output, TaskOutput) else TaskOutput(output.logits, output.features)


def as_data_info(info) -> SimpleNamespace:
    """`info` (an object, a mapping or None) as a namespace of all fields that a method may read; None if absent."""
    fields = {} if info is None else info if isinstance(info, Mapping) else {k: getattr(info, k, None) for k in _FIELDS}
    return SimpleNamespace(**{field: fields.get(field) for field in _FIELDS})


_FIELDS = ("name", "num_classes", "num_train", "image_size", "targets")

