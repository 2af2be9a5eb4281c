"""Helpers of the method tests: networks with fixed outputs, and distillers built as by the trainer."""

import torch
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import build_distiller
from mdistiller.models import build_model


class Fixed(nn.Module):
    """A network whose output for every image is given beforehand: a plain tuple, as other people's networks return.

    The logits are a parameter, to ask for their gradient.
    """

    def __init__(self, logits, features=None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.features = features or {}

    def forward(self, image):
        return self.logits, self.features


def distiller_of(name, student, teacher, *opts, data_info=None):
    """The distiller `name` with config overrides `opts`, in train mode."""
    return build_distiller(load_cfg(None, ["DISTILLER.TYPE", name, *opts]), student, teacher, data_info)


def fixed_step(name, logits_student, logits_teacher, target, *opts, epoch=1):
    """One forward and backward of the distillation terms: (losses, gradient of their sum at the student's logits)."""
    student, teacher = Fixed(logits_student), Fixed(logits_teacher)
    distiller = distiller_of(name, student, teacher, *opts)
    _, losses = distiller(image=torch.zeros(len(target), 3, 8, 8), target=target, epoch=epoch)
    distilled = sum(loss for key, loss in losses.items() if key != "ce")
    (gradient,) = torch.autograd.grad(distilled, student.logits)
    return losses, gradient


def tiny_distiller(name, *opts, num_classes=10, student="resnet8", teacher="resnet14", image_size=32, device="cpu"):
    """A real pair of small networks under the method `name`; seeds fixed; the data is a set of 40 images."""
    torch.manual_seed(0)
    networks = [build_model(network, num_classes).to(device) for network in (student, teacher)]
    info = {"name": "digits", "num_classes": num_classes, "num_train": 40, "image_size": image_size,
            "targets": torch.arange(40) % num_classes}
    return distiller_of(name, *networks, *opts, data_info=info)


def tiny_batch(num_classes=10, size=4, seed=1, image_size=32):
    """A batch as the loader yields it, with both views."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, size, 3, image_size, image_size, generator=generator)
    target = torch.randint(num_classes, (size,), generator=generator)
    return {"image": images[0], "image_strong": images[1], "target": target, "index": torch.arange(size), "epoch": 2}
