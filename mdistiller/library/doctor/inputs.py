"""Checks of the input images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mdistiller.library.doctor.finding import Case, Finding, accuracy, finite
from mdistiller.library.networks import Metadata
from mdistiller.models.transparent import AtInputSize

BYTE = 255.0
SLACK = 0.05  # fraction of a range by which resized images may exceed it
MOST = 0.5  # of a batch
BETTER = 0.2  # rise in accuracy from which on another reading of the images is reported
CHANNELS = (1, 3, 4)


def check_images(case: Case) -> Iterator[Finding]:
    """Faults of images (n, C, H, W) that can be found without a network."""
    image = case.image
    if image is None or not image.numel():
        return
    if not image.is_floating_point():
        yield Finding("type of the images", f"images are {image.dtype}; expected normalised floating-point numbers")
        return
    if not finite(image):
        yield Finding("images not finite", "the images hold infinity or NaN")
        return
    if image.shape[1] not in CHANNELS and image.shape[3] in CHANNELS:
        yield Finding(
            "channels last",
            f"images have shape {tuple(image.shape)}, with the channels at the end; call image.permute(0, 3, 1, 2)",
        )
        return
    if len(image) > 1 and bool((image == image[:1]).all()):
        yield Finding("equal images", "all images of the batch are the same: does the data set return one object?")
    elif bool((image.flatten(1).std(dim=1) == 0).any()):
        yield Finding("blank image", "an image of the batch has one value in all its pixels")
    yield from _range(image, _normalisation(case))


def _normalisation(case):
    """(mean, deviation), (1, C, 1, 1) each: what the teacher's images are converted from, else what the networks'
    library declares, or None."""
    if isinstance(case.kd.distiller.teacher, AtInputSize):
        return case.kd.distiller.teacher.data
    for network in (case.kd.teacher, case.kd.student):
        if network is not None and Metadata(network).normalisation is not None:
            mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in Metadata(network).normalisation)
            return mean, deviation
    return None


def _range(image: Tensor, normalisation) -> Iterator[Finding]:
    low, high = float(image.min()), float(image.max())
    if low >= 0 and high > 2:
        yield Finding("images of 0 to 255", f"pixels run from {low:.0f} to {high:.0f}; divide by 255 and normalise")
        return
    as_bytes = Finding(
        "images of 0 to 255",
        f"pixels run from {low:.0f} to {high:.0f}, as normalised numbers from 0 to 255 do; divide by 255 first",
    )
    if normalisation is None or normalisation[0].shape[1] != image.shape[1]:
        if high - low > BYTE:
            yield as_bytes
        return
    mean, deviation = (values.to(image) for values in normalisation)
    least, most = -mean / deviation, (1 - mean) / deviation
    slack = SLACK * (most - least)
    outside = bool(((image < least - slack) | (image > most + slack)).any())
    twice = bool((image >= (least - mean) / deviation - 1).all() and (image <= (most - mean) / deviation + 1).all())
    if outside and twice:
        yield Finding(
            "normalised twice",
            f"pixels run from {low:.1f} to {high:.1f}, where the networks' normalisation "
            f"ends at {float(least.min()):.1f} and {float(most.max()):.1f}: the mean was "
            "subtracted twice",
        )
    elif outside:
        yield as_bytes
    elif low >= 0 and high <= 1 and bool((least < 0).any()):
        yield Finding(
            "not normalised",
            f"pixels run from {low:.2f} to {high:.2f}; the networks' library subtracts a mean "
            "and divides by a deviation first",
        )


def check_size(case: Case) -> Iterator[Finding]:
    """Images whose size is far from that of the teacher's library, if the teacher is wrong on most of them."""
    image, teacher = case.image, case.kd.teacher
    if image is None or (case.labelled and accuracy(case.logits_teacher, case.target) > MOST):
        return
    size = Metadata(teacher).size if teacher is not None else None
    converts = hasattr(case.kd.distiller.teacher, "convert")
    if size is not None and not converts and not size / 2 <= image.shape[-1] <= size * 2:
        yield Finding(
            "size of the images",
            f"images have {image.shape[-1]} pixels a side, and the teacher's weights are "
            f"made for {size}: its accuracy suffers; resize, or fine-tune it first",
        )


def check_readings(case: Case, run) -> Iterator[Finding]:
    """Changes of the images with which the teacher is clearly more accurate; `run(image)` -> logits."""
    image = case.image
    if image is None or not case.labelled or not image.is_floating_point() or not finite(image):
        return
    right = accuracy(case.logits_teacher, case.target)
    readings = _readings(image, _normalisation(case))
    better = {name: accuracy(run(other), case.target) for name, (_, other) in readings.items()}
    best = max(better, key=better.get)
    if better[best] >= right + BETTER:
        yield Finding(
            best,
            f"the teacher is right on {100 * right:.0f} % of the batch, and on {100 * better[best]:.0f} % of it "
            f"{readings[best][0]}",
        )


def _readings(image, normalisation):
    """{name of a fault: (description of the change, changed images)}."""
    found = {}
    if image.shape[1] == 3:
        found["order of channels"] = "with red and blue exchanged: images are read as BGR (OpenCV)", image.flip(1)
    found["upside down"] = "with the images turned upside down", image.flip(2)
    found["axes exchanged"] = "with height and width exchanged", image.mT
    if normalisation is not None and normalisation[0].shape[1] == image.shape[1]:
        mean, deviation = (values.to(image) for values in normalisation)
        found["normalised twice"] = "once the normalisation is undone: it was applied twice", image * deviation + mean
        found["not normalised"] = "once the images are normalised as its library does", (image - mean) / deviation
    found["inverted"] = "with the pixels' sign reversed: bright and dark are exchanged", -image
    return found
