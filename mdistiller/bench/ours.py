"""The measured code: this project's data pipeline, trainer and teacher cache, as used in a run."""

import collections
import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mdistiller.bench.measure import Settings
from mdistiller.config import load_cfg
from mdistiller.data.cifar import CIFAR100, read_cifar
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine.cache.teacher_cache import TeacherCache, open_cache
from mdistiller.engine.device import keep_freed_memory, place
from mdistiller.engine.folding import fold_teacher
from mdistiller.engine.run_folder import RunFolder
from mdistiller.engine.setup import ALONE, Run, set_seed
from mdistiller.engine.sharing import Alone
from mdistiller.engine.trainer import Trainer
from mdistiller.models import build_model

SIZE, CLASSES, TRAIN_IMAGES, TEST_IMAGES = 32, 100, 50000, 512
CALIBRATION_BATCHES = 4


def read_source(settings: Settings) -> tuple[ImageSource, str]:
    """CIFAR-100, or random images of the same shape, and a text that describes them."""
    if settings.root is not None:
        return read_cifar(CIFAR100, settings.root, download=False), "CIFAR-100"
    rng = np.random.default_rng(0)
    number = settings.images if settings.quick else TRAIN_IMAGES
    images = rng.integers(0, 256, (number + TEST_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, len(images))
    source = ImageSource(
        name="made-up", family="cifar", mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=CLASSES, classes=None,
        train_images=images[:number], train_labels=labels[:number],
        test_images=images[number:], test_labels=labels[number:],
    )
    return source, f"{number:,} random images of CIFAR-100's size"


def shortened(source: ImageSource, images: int, num_classes: int | None = None) -> ImageSource:
    """The first `images` training images of a source; with `num_classes`, with other labels, of so many classes."""
    labels, classes = source.train_labels[:images], num_classes or source.num_classes
    if num_classes:
        labels = np.arange(len(labels)) % num_classes
    return dataclasses.replace(
        source, train_images=source.train_images[:images], train_labels=labels, num_classes=classes, classes=None
    )


def make_data(source: ImageSource, settings: Settings, **changes) -> InMemoryData:
    """This project's data pipeline for a source, on the device; `changes` are config settings."""
    opts = {"SOLVER.BATCH_SIZE": settings.batch, **changes}
    return InMemoryData(source, load_cfg(None, [word for pair in opts.items() for word in pair]), settings.device)


def endless(data: InMemoryData, views: tuple[str, ...]) -> Iterator[dict]:
    """Batches of all epochs, one after another."""
    epoch = 0
    while True:
        epoch += 1
        yield from data.train_batches(epoch, views=views)


def make_teacher(name: str, data: InMemoryData, settings: Settings) -> nn.Module:
    """A teacher with random weights and batch-norm statistics of the data, so that its logits have a usual size."""
    set_seed(0)
    teacher = build_model(name, data.info.num_classes).to(settings.device)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a cumulative average
    with torch.no_grad():
        for _, batch in zip(range(CALIBRATION_BATCHES), data.train_batches(1), strict=False):
            teacher(batch["image"])
    return teacher.eval()


class Steps:
    """Each call is one step of the Trainer: getting a batch, with rows of a cache if there is one, and the update.

    The first `epochs` epochs are repeated, such as the one whose rows a warm cache has; None: every epoch is a new one.
    """

    def __init__(self, run: Run, cache: TeacherCache | None = None, epochs: int | None = 1):
        self.cache, self.epochs = cache, epochs
        self.trainer = Trainer(run, RunFolder("unused"), cache)
        run.distiller.train()
        self._batches = self._endless()

    def _endless(self):
        number = 0
        while True:
            yield from self._begin(number % self.epochs + 1 if self.epochs else number + 1)
            number += 1

    def _begin(self, epoch):
        trainer = self.trainer
        trainer.state.begin(epoch)
        return trainer.batches()

    def __call__(self) -> None:
        self.trainer._step(next(self._batches))

    def epoch(self, number: int, steps: int | None = None) -> None:
        """Run the first `steps` steps of an epoch (None: all)."""
        for batch in itertools.islice(self._begin(number), steps):
            self.trainer._step(batch)


class OurStep(Steps):
    """Steps on images of a source, with a given teacher; its cache is filled beforehand if `warm`."""

    def __init__(
        self, data: InMemoryData, teacher: nn.Module, pair: tuple[str, str], method: str, settings: Settings, *,
        cache: Path | None = None, warm: bool = True, epochs: int | None = 1, shared: Alone = ALONE, **opts,
    ):
        """`shared` are the parts in common with other steps, of runs that train together."""
        if settings.device.type == "cpu":
            keep_freed_memory()
        words = {
            "DISTILLER.TYPE": method, "DISTILLER.TEACHER": pair[0], "DISTILLER.STUDENT": pair[1], "SOLVER.LR": 0.01,
            "SOLVER.BATCH_SIZE": settings.batch, "SOLVER.WEIGHT_DECAY": 5e-4, "DATASET.SEED": data.seed,
            "TEACHER_CACHE.CHECK": 0, "TEACHER_CACHE.DIR": str(cache), **opts,
        }
        cfg = load_cfg(None, [word for item in words.items() for word in item])
        kind, device, last = DISTILLERS[cfg.DISTILLER.TYPE], settings.device, cfg.SOLVER.CHANNELS_LAST
        teacher = fold_teacher(teacher, kind) if cfg.DISTILLER.FOLD_TEACHER else teacher
        teacher = copy.deepcopy(teacher) if kind.teacher_mode == "train" else teacher  # its statistics will move
        data = shared.data(cfg, lambda: data)
        teacher = place(teacher, device, last).eval() if kind.needs_teacher else None
        set_seed(1)
        student = place(build_model(pair[1], data.info.num_classes), device, last)
        distiller = place(build_distiller(cfg, student, teacher, data.info), device, last)
        shared.join(cfg, data, distiller)
        stored = None
        if cache is not None:
            stored = open_cache(cfg, data, teacher, None, device, epochs=0, views=distiller.views)
            collections.deque(stored.fill([1] if warm else []), maxlen=0)
        super().__init__(Run(cfg, device, data, distiller.task, distiller, {}), stored, epochs)
