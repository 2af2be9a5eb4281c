"""Networks by name: images (B, 3, H, W) -> Output(logits, features)."""

from torch import nn

from mdistiller.errors import UserError
from mdistiller.models import cifar, imagenet, tiny_imagenet  # they register their networks
from mdistiller.models.base import MODELS, Network, Output, give_output, register_model, try_out
from mdistiller.models.transparent import AtInputSize, Transparent
from mdistiller.models.wrappers import build_wrapped

__all__ = ["MODELS", "AtInputSize", "Network", "Output", "build_model", "register_model", "try_out"]


def build_model(name: str, num_classes: int, family: str = "cifar", pretrained: bool = False, **kwargs) -> nn.Module:
    """The network `name` of a family: "cifar", "tiny_imagenet" or "imagenet"; lookup ignores case.

    The same name can be a different network in another family: "cifar" has 3x3 stems without pooling, "tiny_imagenet"
    has the same networks apart from MobileNetV2, and "imagenet" has those of torchvision. Names with a colon mean the
    same in all families: "timm:<name>", "torchvision:<name>" and "<file>.py:<class>" (see `wrappers`). `pretrained`
    loads the weights of the library. The result of the user's own network (logits, or logits and a dict) is converted
    to an `Output`. Raises UserError for an unknown name, or if there are no pretrained weights.
    """
    if ":" in name:
        network = build_wrapped(name, num_classes, pretrained, **kwargs)
    else:
        network = _build_registered(name, num_classes, family, pretrained, kwargs)
    if not isinstance(network, Network | Transparent):
        network.register_forward_hook(give_output)
    return network


def _build_registered(name, num_classes, family, pretrained, kwargs):
    build = MODELS[family][name]
    if pretrained:
        if family.lower() != "imagenet":
            raise UserError(
                f"no pretrained weights for {family} model {name!r}: download teachers with "
                "tools/fetch_teachers.py, or set DISTILLER.TEACHER_CHECKPOINT"
            )
        kwargs = {**kwargs, "pretrained": True}
    return build(num_classes=num_classes, **kwargs)
