"""Distillation in your own training loop: one module that turns a batch into a loss."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.distillers import Distiller
from mdistiller.errors import UserError
from mdistiller.functional import wide
from mdistiller.hooks import after_saving
from mdistiller.library.arguments import check_epoch, check_stored
from mdistiller.library.batch import check_batch, check_index, sorted_batch
from mdistiller.library.doctor.first_step import FirstStep, explain
from mdistiller.library.step import Evaluated, Step
from mdistiller.library.tasks import Samples, Texts
from mdistiller.models.transparent import Transparent
from mdistiller.tasks import TaskOutput

CHECKPOINTING = [f"{kind}_checkpointing_{do}" for kind in ("activation", "gradient") for do in ("enable", "disable")]


class Distillation(Transparent):
    """A student, a frozen teacher, and a method's losses between them, see `distill`.

    The state dict contains the student and the method's modules, under their names in the distiller. The teacher is
    not a submodule: it stays in the mode that its method needs, outside the state dict, DDP and the optimiser, but `to`
    moves it. A tensor with two names, such as tied weights of a language model, is there twice, the second time as a
    copy, because transformers' Trainer saves no shared memory; loading leaves the weights tied. The user sets `epoch`,
    which counts from 1; with None every warm-up counts as finished. `checked` False skips the checks of the first step.
    """

    accepts_loss_kwargs = False  # transformers' Trainer divides the loss by the number of accumulated batches itself

    def __init__(self, distiller: Distiller, student: nn.Module, teacher: nn.Module | None):
        super().__init__(distiller)
        after_saving(self, _unshare)
        self._epoch: float | None = None
        self._watch = FirstStep()
        # The entries of a batch that the method's losses name, asked once because a signature takes 0.1 ms.
        self.reads = frozenset(inspect.signature(distiller.sample_losses).parameters).union(distiller.views)
        object.__setattr__(self, "_networks", (student, teacher))  # the user's networks, without our wrappers

    @property
    def distiller(self) -> Distiller:
        """The method, see `mdistiller.distillers.Distiller`."""
        return self.inner

    @property
    def student(self) -> nn.Module:
        """The network that was given as the student."""
        return self._networks[0]

    @property
    def teacher(self) -> nn.Module | None:
        """The network that was given as the teacher."""
        return self._networks[1]

    @property
    def epoch(self) -> float | None:
        """The epoch, from 1. Raises UserError if it is set to anything below."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: float | None) -> None:
        self._epoch = check_epoch(epoch)

    @property
    def checked(self) -> bool:
        return self._watch is not None

    @checked.setter
    def checked(self, wanted: bool) -> None:
        if self._watch is not None and not wanted:
            self._watch.end()
        self._watch = (self._watch or FirstStep()) if wanted else None

    def __getattr__(self, name):
        if name in CHECKPOINTING:  # transformers' Trainer asks the module that it trains
            return getattr(self.student, name)
        try:
            return super().__getattr__(name)
        except AttributeError:  # torch.distributed.checkpoint takes the keys of the state dict for paths from here
            part = getattr(self.__dict__.get("_modules", {}).get("inner"), name, None)
            if isinstance(part, Tensor | nn.Module):
                return part
            raise

    def __setattr__(self, name, value):
        if name in ("distiller", "student", "teacher"):  # a module would be kept besides the one that is trained
            raise UserError(f"kd.{name} cannot be replaced: give distill the other network, or change this one in "
                            "place, as kd.student.compile() does")
        super().__setattr__(name, value)

    def no_weight_decay(self) -> set[str]:
        """Names here of the parameters that the student exempts from weight decay; timm's optimisers ask for them."""
        path = next(name for name, module in self.named_modules() if module is self.student)
        return {f"{path}.{name}" for name in getattr(self.student, "no_weight_decay", set)()}

    def deployed(self) -> nn.Module:
        """The network to evaluate and keep: the student, or for a few methods the student with more behind it."""
        deployed = self.distiller.deployed()
        return self.student if deployed is self.distiller.student else deployed

    def learnable_parameters(self) -> list[nn.Parameter]:
        """What an optimiser is given: the student's parameters, then those of the method's own modules."""
        return self.distiller.learnable_parameters()

    def forward(
        self,
        image: Any = None,
        target: Tensor | None = None,
        *,
        teacher_logits: Tensor | None = None,
        epoch: float | None = None,
        **batch,
    ) -> Step | Evaluated:
        """The losses of a batch in train mode; in eval mode the logits of the deployed network, and cross-entropy.

        `image` is the input of both networks: a tensor, or a mapping of their keywords, which may also be passed one by
        one, such as input_ids and pixel_values. `target`, also under the names `labels` and `label`, are the classes
        (n,), or their probabilities (n, C) for a method that does not read the class. Without labels only the
        distillation losses are computed. `teacher_logits` (n, C) replace the teacher's pass. Further inputs of a method
        are given by name: `index` (n,), the numbers of the samples, or `image_strong`, a second view. `epoch` (from 1)
        is used for this batch instead of the attribute. Raises UserError if an input is missing or has another form.
        """
        distiller, task = self.distiller, self.distiller.task
        inputs, ready, extra = image, {"image": image, "target": target}, batch
        if isinstance(task, Samples | Texts):
            inputs, target, extra = sorted_batch(image, target, batch, self.reads)
            teacher_logits = extra.pop("teacher_logits", teacher_logits)
            if isinstance(task, Samples):
                target = check_batch(inputs, target, distiller.method, "target" in self.reads)
            ready = task.prepare(inputs, target)
        if not self.training:
            return self._evaluated(ready)
        self._check(target, teacher_logits, extra)
        if teacher_logits is not None and isinstance(task, Samples | Texts):
            check_stored(teacher_logits, ready.get("positions", inputs), distiller.data_info.num_classes)
        number = next((one for one in (check_epoch(epoch), self.epoch) if one is not None), distiller.settled_epoch)
        abstract = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()  # without values
        watched = self._watch is not None and torch.is_grad_enabled() and not abstract
        if watched:
            self._watch.before(self, target, teacher_logits, extra)
        try:
            logits, losses = distiller(**ready, **extra, epoch=number, logits_teacher=teacher_logits)
        except Exception as error:  # of any kind, raised by a user's network or by a loss
            explain(self, error, inputs, target, extra)
            raise
        weight = distiller.monitor.get("weight")
        weight = wide(logits.new_ones(len(logits))) if weight is None else weight
        step = Step(sum(losses.values()), losses, logits, weight)
        if watched:
            self._watch = self._watch.after(self, step, inputs, target)
        return step

    def _check(self, target, teacher_logits, extra):
        distiller = self.distiller
        if target is None and not isinstance(distiller.task, Texts):
            if not distiller.needs_teacher:
                raise UserError(f"{distiller.method} trains on labels alone: kd(x, y)")
            if "target" in self.reads:
                raise UserError(f"{distiller.method} reads the labels of the samples: kd(x, y)")
        missing = [view for view in distiller.views[1:] if view not in extra]
        if missing:
            raise UserError(f"{distiller.method} compares two views of each image: kd(x, y, {missing[0]}=x_strong)")
        if teacher_logits is None and distiller.needs_teacher and self.teacher is None:
            raise UserError(f"{distiller.method} was made without a teacher: kd(x, y, teacher_logits=z)")
        if teacher_logits is not None and not stored_suffice(distiller):
            what = "two views" if len(distiller.views) > 1 else "features"
            raise UserError(
                f"{distiller.method} reads the teacher's {what}: stored logits cannot stand in for its pass"
            )
        if "index" in self.reads:
            if "index" not in extra:
                raise UserError(f"{distiller.method} remembers every sample: kd(x, y, index=i), their numbers from 0")
            extra["index"] = check_index(extra["index"], target)

    def _evaluated(self, batch) -> Evaluated:
        task, network = self.distiller.task, self.distiller.deployed()
        inputs = task.inputs(batch, "image")
        if isinstance(task, Texts):
            logits = task.all_logits(network, inputs)
            output = TaskOutput(logits.flatten(0, 1)[batch["positions"]])
        else:
            output = task.run_student(network, inputs)
            output = output.in_full() if hasattr(output, "in_full") else output
            logits = output.logits
        if batch["target"] is None or not batch.get("labelled", True):
            return Evaluated((logits,))
        losses = task.supervised([output._replace(logits=wide(output.logits))], batch["target"], 0.0)
        evaluated = Evaluated((sum(losses.values()), logits))
        evaluated.losses = losses
        return evaluated


def _unshare(module, state_dict, prefix, local_metadata):
    seen = set()
    for name, value in state_dict.items():
        if name.startswith(prefix) and type(value) is Tensor:  # neither parameters, with keep_vars, nor parts of FSDP
            place = value.untyped_storage().data_ptr()
            if place in seen:
                state_dict[name] = value.clone()
            seen.add(place)


def stored_suffice(method: Distiller | type[Distiller]) -> bool:
    """Whether stored logits of one view can stand in for the teacher's pass."""
    return method.inputs == "logits" and len(method.views) == 1


class Configured(Distillation):
    """The distillation of a configuration file, with its data, see `from_config`."""

    def __init__(self, run):
        distiller = run.distiller
        super().__init__(distiller, distiller.student, distiller.teacher)
        self.run = run

    def batches(self, epoch: int) -> Iterator[dict]:
        """The training batches of an epoch (from 1), as `kd(**batch)` takes them; sets `epoch`, and the seed of each
        step's random numbers, as a run by tools/train.py has them."""
        from mdistiller.engine.trainer import step_seed

        self.epoch = check_epoch(epoch, whole=True)
        seed = self.run.cfg.EXPERIMENT.SEED
        for number, batch in enumerate(self.run.data.train_batches(epoch, views=self.distiller.views)):
            batch.pop("share", None)
            torch.manual_seed(step_seed(seed, epoch, number))
            yield batch

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics of the deployed network, see the task of the data; leaves the modules in eval mode."""
        self.eval()
        batches = self.run.data.eval_batches(split)
        return self.run.task.evaluate(self.distiller.deployed(), batches, self.run.device)
