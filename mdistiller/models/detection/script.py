"""A detector as a TorchScript module, which runs without this project."""

import warnings

import torch
from torch import Tensor, nn

from mdistiller.models.detection.detector import Detector


class _Detections(nn.Module):
    """A detector, one image -> (boxes, scores, labels)."""

    def __init__(self, network: Detector):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (found,) = self.network.detect([image])
        return found["boxes"], found["scores"], found["labels"]


class FixedSize(nn.Module):
    """A traced module, which is correct for one size of image only, behind a check of that size."""

    def __init__(self, inner: nn.Module, height: int, width: int):
        super().__init__()
        self.inner, self.height, self.width = inner, height, width

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image (3, height, width), RGB, 0..255 -> boxes (n, 4), scores (n,), labels (n,) from 1, best score first."""
        if image.dim() != 3 or image.size(0) != 3 or image.size(1) != self.height or image.size(2) != self.width:
            raise ValueError("this module was traced for images of one size; see student.json")
        boxes, scores, labels = self.inner(image)
        return boxes, scores, labels


def traced(network: Detector, height: int, width: int) -> torch.jit.ScriptModule:
    """A detector in eval mode as a TorchScript module for images (3, height, width), uint8, RGB.

    It needs torch and torchvision (`import torchvision` registers the operators that it calls). Scripting is not
    possible, because the sizes of images are Python numbers in the detector; tracing makes them constants.
    """
    device = next(network.parameters()).device
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, device=device,
                          generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about each of these constants, and of its deprecation
        inner = torch.jit.trace(_Detections(network), image, check_trace=False)
        return torch.jit.script(FixedSize(inner, height, width))
