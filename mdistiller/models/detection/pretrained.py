"""torchvision's ImageNet weights for the bodies of detectors."""

import torch

from mdistiller.errors import UserError
from mdistiller.models.detection.detector import Detector
from mdistiller.models.imagenet.resnet import library_weights

NAMES = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101", "mv2": "mobilenet_v2"}
STD = (58.395, 57.12, 57.375)  # of pixels 0..255 in the training of these weights: red, green, blue
FIRST = {"mv2": "0.0.weight"}  # name of the first convolution's weight in a body; that of a ResNet is conv1.weight


def load_library_body(network: Detector, name: str) -> None:
    """Put ImageNet weights into the body of a detector, whatever its order of channels and its normalisation.

    The first convolution is converted: its input channels are put in the network's order, and scaled by the network's
    std divided by that of ImageNet. Raises UserError for a body of another width or kind of norm, and for bottlenecks
    with the stride in the 1x1 convolution, where these weights have it in the 3x3.
    """
    if name in ("r50", "r101") and network.preset.stride_in_1x1:
        raise UserError(f"pretrained {name} has strides of MODEL.PRESET torchvision; expected that preset or a file")
    body = network.model.backbone.body
    state = library_weights(NAMES[name], "or name a file")
    state = {key.removeprefix("features."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key in body.state_dict()}
    first = FIRST.get(name, "conv1.weight")
    own_std = torch.tensor(network.model.transform.image_std)[:, None, None]
    std = torch.tensor(STD)[:, None, None]
    weight = state[first].flip(1) if network.order == "bgr" else state[first]
    state[first] = weight * (own_std / (std.flip(0) if network.order == "bgr" else std))
    try:
        body.load_state_dict(state)
    except RuntimeError:
        raise UserError(
            f"pretrained {name} has batch norms and the published widths; expected MODEL.NORM frozen, bn or sync and a "
            "width of 1.0"
        ) from None
