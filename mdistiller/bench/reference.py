"""The plain path: a conventional implementation of distillation with which this project is compared.

DataLoader workers crop, flip and normalise single images with PIL and torchvision; teacher and student use contiguous
tensors, the teacher runs in every step, and losses and accuracies are read back after each step.
"""

import contextlib
import math
import multiprocessing
import random
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mdistiller.data.memory import ImageSource
from mdistiller.data.strong import CUTOUT_COLOUR, OPERATIONS
from mdistiller.models import build_model

WORKERS = 2
PREFETCH = 2  # batches that a worker prepares in advance
TEMPERATURE, WEIGHT_TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 4.0, 3.0, 0.1, 0.9  # KD's defaults


def weak_view(source: ImageSource) -> transforms.Compose:
    """Crop with a padding of 4, flip, normalise: PIL image -> tensor (3, H, W)."""
    return transforms.Compose([*_begin(source), *_end(source)])


def strong_view(source: ImageSource) -> transforms.Compose:
    """As `weak_view`, with two random operations and a cutout before the normalisation (MLD)."""
    return transforms.Compose([*_begin(source), _augment, *_end(source)])


def _begin(source):
    return [transforms.RandomCrop(source.train_images.shape[1], padding=4), transforms.RandomHorizontalFlip()]


def _end(source):
    return [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]


def _augment(image):
    for name, low, high in random.choices(OPERATIONS, k=2):
        image = _OPERATIONS[name](image, low + (high - low) * random.random())
    return _cutout(image)


def _cutout(image):
    width, height = image.size
    side = width * 0.5 * random.random()
    left, top = (int(max(0, random.uniform(1, size) - side / 2)) for size in (width, height))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, left + side, top + side), CUTOUT_COLOUR)
    return image


def _affine(*coefficients):
    return lambda image, v: image.transform(
        image.size, Image.Transform.AFFINE, tuple(c(v, image.size) if callable(c) else c for c in coefficients)
    )


_OPERATIONS = {
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "Rotate": lambda image, v: image.rotate(v),
    "ShearX": _affine(1, lambda v, size: v, 0, 0, 1, 0),
    "ShearY": _affine(1, 0, 0, lambda v, size: v, 1, 0),
    "TranslateX": _affine(1, 0, lambda v, size: v * size[0], 0, 1, 0),
    "TranslateY": _affine(1, 0, 0, 0, 1, lambda v, size: v * size[1]),
    "Identity": lambda image, v: image,
}


class PilImages(Dataset):
    """Single training images: (one tensor per transform, target, index)."""

    def __init__(self, source: ImageSource, views: list):
        self.images, self.labels, self.views = source.train_images, source.train_labels, views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = Image.fromarray(np.ascontiguousarray(self.images[index]))
        return *(view(image) for view in self.views), int(self.labels[index]), index


def reference_batches(
    source: ImageSource, batch: int, device: torch.device, strong: bool = False, workers: int = WORKERS
) -> Iterator[list[Tensor]]:
    """Endless shuffled batches: image (B, 3, H, W), with `strong` a second one, target (B,), index (B,)."""
    views = [weak_view(source), strong_view(source)] if strong else [weak_view(source)]
    loader = DataLoader(
        PilImages(source, views), batch, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda",
        persistent_workers=workers > 0, prefetch_factor=PREFETCH if workers else None,
        # As in a program of its own: in a spawned process workers are spawned, too, each with its own images and torch.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
    )
    while True:
        yield from loader


class ReferenceStep:
    """Each call is one training step of KD or EA-KD, with sums of loss and accuracy as for a progress bar."""

    def __init__(self, batches: Iterator, student: nn.Module, teacher: nn.Module, device: torch.device, ea: bool):
        self.batches, self.device, self.ea = batches, device, ea
        self.student, self.teacher = student.to(device).train(), teacher.to(device).eval()
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.loss = self.hits = self.number = 0

    def __call__(self) -> None:
        image, target, _ = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
        logits_student = self.student(image).logits
        with torch.no_grad():
            logits_teacher = self.teacher(image).logits
        kd = F.kl_div(
            F.log_softmax(logits_student / TEMPERATURE, dim=1), F.softmax(logits_teacher / TEMPERATURE, dim=1),
            reduction="none",
        ).sum(1) * TEMPERATURE**2
        if self.ea:
            kd = kd * _ea_weight(logits_student.detach(), logits_teacher)
        loss = CE_WEIGHT * F.cross_entropy(logits_student, target) + KD_WEIGHT * kd.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        top5 = logits_student.topk(min(5, logits_student.shape[1]), dim=1).indices == target[:, None]
        self.loss += loss.item() * len(target)
        self.hits += top5[:, 0].sum().item() + top5.sum().item()
        self.number += len(target)


class StepApart:
    """A `ReferenceStep` that runs in a separate process with PyTorch's default settings."""

    def __init__(self, source: ImageSource, pair: tuple[str, str], teacher: dict, batch: int, device, ea: bool):
        """`teacher` is the state dict of pair[0], in CPU memory."""
        context = multiprocessing.get_context("spawn")
        self.end, other = context.Pipe()
        arrays = {key: value.numpy() for key, value in teacher.items()}
        self.process = context.Process(target=_serve, args=(other, source, pair, arrays, batch, device, ea))
        self.process.start()
        other.close()
        self.end.recv()  # wait until it is ready

    def __call__(self) -> None:
        self.end.send(True)
        self.end.recv()

    def finish(self) -> None:
        """End the process."""
        self.end.close()
        self.process.join()


def _serve(end, source, pair, arrays, batch, device, ea):
    teacher, student = (build_model(name, source.num_classes) for name in pair)
    teacher.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    step = ReferenceStep(reference_batches(source, batch, device), student, teacher, device, ea)
    with contextlib.suppress(EOFError):  # the other end is closed
        end.send("ready")
        while end.recv():
            step()
            end.send("done")


def _ea_weight(logits_student, logits_teacher):
    entropies = []
    for logits in (logits_student, logits_teacher):
        p = F.softmax(logits / WEIGHT_TEMPERATURE, dim=1)
        entropies.append(-(p * (p + 1e-8).log()).sum(1))
    student, teacher = entropies
    return teacher * (1 + student / math.log(logits_student.shape[1])) / 2
