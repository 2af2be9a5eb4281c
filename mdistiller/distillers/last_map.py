"""Access to the last map of a network, before its global average and classifier. Not a method."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.distillers.base import Distiller
from mdistiller.distillers.features import misfit
from mdistiller.models.base import Output, any_parameter, as_output


def run_to_map(network: nn.Module, image: Tensor) -> Output:
    """One pass: `logits` (B, C) and `features` {"map": (B, D, H, W)}, the map that is averaged and classified.

    A network with `stages` is run stage by stage, because a norm or a convolution may follow the last of its `feats`.
    For any other network, the map is the last of its `feats`.
    """
    stages = _stages(network)
    if stages is None:
        output = as_output(network, network(image))
        return Output(output.logits, {"map": output.features["feats"][-1]})
    x = image
    for stage in stages:
        x = stage(x)
    return Output(network.head(x), {"map": F.relu(x)})


def classifier_of(network: nn.Module) -> nn.Linear | None:
    """The last linear layer of the network, under any attribute name; None if there is none."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


class LastMapDistiller(Distiller):
    """A method whose losses read `features["map"]` of both networks, see `run_to_map`. Call `check_maps` in `build`."""

    inputs = "features"
    needs = ("feats", "classifier")

    def run_student(self, image: Tensor) -> Output:
        return run_to_map(self.student, image)

    def run_teacher(self, image: Tensor, student: Output | None = None) -> Output:
        with torch.no_grad():
            return run_to_map(self.teacher, image)

    @torch.no_grad()
    def check_maps(self) -> tuple[tuple, tuple]:
        """Shapes (1, D, H, W) of the student's and the teacher's map, for images of the data's size.

        Sets `classifiers` to those of student and teacher, and leaves the networks in eval mode. Raises UserError
        unless, for a test image, each network's logits are its classifier applied to the mean of its map.
        """
        (student, student_fits), (teacher, teacher_fits) = (
            _try(network, self.task.blank_inputs(None, any_parameter(network, self.student)))
            for network in (self.student, self.teacher)
        )
        if not (student_fits and teacher_fits):
            reason = "it needs networks that average their last map and classify it by one linear layer"
            raise misfit(self, [student], [teacher], reason)
        self.classifiers = classifier_of(self.student), classifier_of(self.teacher)  # a tuple: no submodules
        return student, teacher


def _try(network, blank):
    classifier = classifier_of(network)
    image = torch.linspace(-2, 2, blank.numel(), device=blank.device, dtype=blank.dtype).view_as(blank)  # not random
    network.eval()
    if _stages(network) is None and not as_output(network, network(image)).features.get("feats"):
        return (), False
    output = run_to_map(network, image)
    last = output.features["map"]
    if classifier is None or last.dim() != 4 or last.shape[1] != classifier.in_features:
        return tuple(last.shape), False
    logits = classifier(last.mean((2, 3)))
    return tuple(last.shape), logits.shape == output.logits.shape and torch.allclose(logits, output.logits, 1e-3, 1e-4)


def _stages(network):
    try:
        return network.stages() if hasattr(network, "stages") else None
    except NotImplementedError:
        return None
