"""What runs that train together in one process have in common: data, batches, teacher, and the teacher's passes.

Two runs share a part when every setting that the part depends on is equal, so that neither of them can tell the
difference: each reads the same bits that it would compute alone.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.config.common import data_settings, teacher_settings
from mdistiller.data.base import VIEWS, Data
from mdistiller.distillers import Distiller
from mdistiller.engine.checkpoints import state_sha256
from mdistiller.places import RANDOM_TEACHER


class Alone:
    """The parts of a run that trains alone: it makes all of them itself."""

    def data(self, cfg: CfgNode, make: Callable[[], Any]) -> Any:
        """The data that `make()` builds from this configuration."""
        return make()

    def teacher(self, cfg: CfgNode, method: type[Distiller], make: Callable) -> tuple[nn.Module, dict]:
        """The teacher of a method (a class) and its metadata, which `make()` loads."""
        return make()

    def results(self, teacher: nn.Module, make: Callable[[], Mapping]) -> Mapping:
        """The test results of the teacher, which `make()` measures."""
        return make()

    def join(self, cfg: CfgNode, data, distiller: Distiller) -> None:
        """Take up a run that has been built."""


class Together(Alone):
    """The parts of several runs in one process; the first run that needs one makes it, and it is kept."""

    def __init__(self):
        self.kept: dict[tuple, Any] = {}
        self.passes = TeacherPasses()

    def _once(self, key, make):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def data(self, cfg, make):
        """The same data for equal settings, if its samples are whole images; other data is not shared."""
        key = ("data", data_settings(cfg))
        if key in self.kept:
            return self.kept[key]
        data = make()
        return self._once(key, lambda: SharedBatches(data)) if isinstance(data, Data) else data

    def teacher(self, cfg, method, make):
        """The same network for equal settings. A method whose teacher is in train mode changes it, and has its own; so
        has each run whose teacher has random weights, which come from the seed of the run."""
        if method.teacher_mode != "eval" or cfg.DISTILLER.TEACHER_CHECKPOINT == RANDOM_TEACHER:
            return make()
        folded = cfg.DISTILLER.FOLD_TEACHER and method.inputs == "logits"  # see `fold_teacher`
        key = ("teacher", folded, data_settings(cfg), teacher_settings(cfg))
        teacher, metadata = self._once(key, make)
        return teacher, dict(metadata)

    def results(self, teacher, make):
        return self._once(("results", teacher), make)

    def join(self, cfg, data, distiller):
        if isinstance(data, SharedBatches):
            data.views.update(distiller.views)
        if distiller.teacher is not None:
            self.passes.join(cfg, distiller)


class SharedBatches:
    """Data whose batches are made once for several runs; all other attributes are those of `data`.

    Runs that are at the same batch get the same tensors. A run at another place starts anew from there, which is slower
    and as correct.
    """

    def __init__(self, data: Data):
        self._data, self.views = data, {"image"}  # the views that any of the runs needs
        self._stream: Iterator[dict] = iter(())
        self._place, self._batch = (0, 0), {}  # (epoch, number) of the newest batch, and the batch

    def __getattr__(self, name):
        return getattr(self._data, name)

    def train_batches(
        self, epoch: int, views: Sequence[str] = ("image",), start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of an epoch with the `views` of one of the runs, as in `Data`; `rank` and `world_size` are 0 and 1.
        """
        others = set(VIEWS) - set(views) - {"image"}
        for number in range(start, self._data.num_batches):
            batch = self._at(epoch, number)
            yield {key: value for key, value in batch.items() if key not in others}

    def _at(self, epoch, number):
        if self._place != (epoch, number):
            if self._place != (epoch, number - 1):
                self._stream = self._data.train_batches(epoch, views=tuple(self.views), start=number)
            self._batch, self._place = next(self._stream), (epoch, number)
        return self._batch


class Pass(NamedTuple):
    """A pass of a teacher over images: `before` and `after` name the states of the teacher, see `TeacherPasses`."""

    key: tuple
    before: Any
    output: Any
    teacher: nn.Module
    after: Any


class TeacherPasses:
    """The teacher's passes over the newest batch; a run gets the output of a pass that another run has made.

    A pass is the same for two runs if these are equal: the images (the same tensor), the teacher's settings, mode and
    precision, the code that runs it (a method that replaces `run_teacher` shares passes with runs of the same settings
    of its node), and the state of the teacher. Its state is named by the hash of its tensors and, in train mode, where
    a pass moves the running statistics, by a new name after every pass; a run that gets the output then also gets the
    moved statistics. A pass that draws random numbers is not shared.
    """

    def __init__(self):
        self._states: dict[nn.Module, Any] = {}  # teacher -> name of its state
        self._newest: deque[tuple[Tensor, list[Pass]]] = deque(maxlen=len(VIEWS))  # images -> passes over them

    def join(self, cfg: CfgNode, distiller: Distiller) -> None:
        """Let a distiller get and leave passes here."""
        own, code = distiller.run_teacher, type(distiller).run_teacher
        settings = None if code is Distiller.run_teacher else json.dumps(distiller.cfg.get(distiller.config_key, {}))
        fixed = (code, settings, teacher_settings(cfg))

        def run_teacher(inputs, student=None):
            if not isinstance(inputs, Tensor):  # the teacher may need the student's boxes or tokens
                return own(inputs, student)
            kind = inputs.device.type
            precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
            return self._get((*fixed, precision, distiller.teacher.training), distiller.teacher, inputs, own)

        distiller.run_teacher = run_teacher  # an attribute of this object, which hides the method of its class

    def _get(self, key, teacher, inputs, run):
        if teacher not in self._states:
            self._states[teacher] = state_sha256(teacher.state_dict())
        state, passes = self._states[teacher], self._passes_over(inputs)
        for made in passes:
            if (made.key, made.before) == (key, state):
                if made.teacher is not teacher and made.after != made.before:
                    torch._foreach_copy_(list(teacher.buffers()), list(made.teacher.buffers()))
                self._states[teacher] = made.after
                return made.output
        random = _random_state(inputs.device)
        output = run(inputs)
        after = object() if teacher.training else state
        self._states[teacher] = after
        if torch.equal(random, _random_state(inputs.device)):
            passes.append(Pass(key, state, output, teacher, after))
        return output

    def _passes_over(self, inputs):
        for images, passes in self._newest:
            if images is inputs:
                return passes
        self._newest.append((inputs, []))
        return self._newest[-1][1]


def _random_state(device):
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)
