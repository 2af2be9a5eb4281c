"""Converts weights of detectron2's detectors to the parameter names of `Detector`."""

import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mdistiller.errors import UserError
from mdistiller.models.detection.backbones import DEPTHS

BODY, HEADS = "backbone.bottom_up.", "model.roi_heads."
CONVS = {"shortcut": "downsample.0", "shortcut.norm": "downsample.1"}


def convert_detectron2(state: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
    """Converts the state dict of detectron2's Faster R-CNN with a pyramid to one that a `Detector` loads strictly.

    The background is moved from the last class to the first; the box offsets get four rows of zeros for it, which are
    never used. Anchors and pixel means, which detectron2 stores too, are left out. Raises UserError with the first
    entry that has no counterpart.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith(("pixel_", "proposal_generator.anchor_generator.")):
            continue
        tensor = torch.as_tensor(np.array(value)) if not isinstance(value, Tensor) else value
        target = _new_name(name)
        if target is None:
            raise UserError(f"{name}: not a parameter of a Faster R-CNN with a feature pyramid")
        if ".box_predictor." in target:
            tensor = _background_first(target, tensor)
        converted[target] = tensor.clone()
    return converted


def split_pair(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(teacher, backbone of the student) from a file of the ReviewKD authors for a pair of networks, converted.

    The names of the teacher's entries begin with "teacher."; the student's weights are those trained on ImageNet.
    Raises UserError for a file without a teacher.
    """
    teacher = {name.removeprefix("teacher."): value for name, value in state.items() if name.startswith("teacher.")}
    if not teacher:
        raise UserError("no name begins with teacher.: expected a file of a teacher and its student")
    body = {name if name.startswith(BODY) else BODY + name: value for name, value in state.items()
            if name.startswith((BODY, "stem.", "res", "features."))}
    return convert_detectron2(teacher), convert_detectron2(body)


def name_of(state: Mapping[str, Tensor]) -> str:
    """The name of the network to which converted weights belong: r18, r34, r50, r101 or mv2; UserError for others."""
    if any(".body.features." in name or re.search(r"\.body\.\d+\.", name) for name in state):
        return "mv2"
    depth = len({name.split(".")[4] for name in state if ".body.layer3." in name})
    bottlenecks = any(".conv3." in name for name in state)
    found = [name for name, sizes in DEPTHS.items() if sizes[2] == depth and (name in ("r50", "r101")) == bottlenecks]
    if len(found) != 1:
        raise UserError(f"{depth} blocks in res4: expected those of {', '.join(DEPTHS)}")
    return found[0]


def _new_name(name: str) -> str | None:
    for pattern, new in RULES:
        found = re.fullmatch(pattern, name)
        if found:
            return new(found)
    return None


def _block(found):
    """res3.0.conv1.norm.weight -> layer2.0.bn1.weight."""
    stage, place, part, rest = found.groups()
    if part.startswith("shortcut"):
        return f"model.backbone.body.layer{int(stage) - 1}.{place}.{CONVS[part]}.{rest}"
    inner = part.replace(".norm", "").replace("conv", "bn") if part.endswith(".norm") else part
    return f"model.backbone.body.layer{int(stage) - 1}.{place}.{inner}.{rest}"


def _pyramid(found):
    kind, level, rest = found.groups()
    blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[kind]
    return f"model.backbone.fpn.{blocks}.{int(level) - 2}.0.{rest}"


def _mobile(found):
    return f"model.backbone.body.{found[1]}"


REST = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
RPN = r"proposal_generator\.rpn_head\."
BOTTOM = r"backbone\.bottom_up\."
RULES: list[tuple[str, Callable]] = [
    (rf"{BOTTOM}stem\.conv1\.norm\.{REST}", lambda found: f"model.backbone.body.bn1.{found[1]}"),
    (rf"{BOTTOM}stem\.conv1\.{REST}", lambda found: f"model.backbone.body.conv1.{found[1]}"),
    (rf"{BOTTOM}res(\d)\.(\d+)\.((?:conv\d|shortcut)(?:\.norm)?)\.{REST}", _block),
    (rf"{BOTTOM}features\.(\d+\..*)", _mobile),
    (rf"backbone\.fpn_(lateral|output)(\d)\.{REST}", _pyramid),
    (rf"{RPN}conv\.{REST}", lambda found: f"model.rpn.head.conv.0.0.{found[1]}"),
    (rf"{RPN}objectness_logits\.{REST}", lambda found: f"model.rpn.head.cls_logits.{found[1]}"),
    (rf"{RPN}anchor_deltas\.{REST}", lambda found: f"model.rpn.head.bbox_pred.{found[1]}"),
    (rf"roi_heads\.box_head\.fc1\.{REST}", lambda found: f"{HEADS}box_head.fc6.{found[1]}"),
    (rf"roi_heads\.box_head\.fc2\.{REST}", lambda found: f"{HEADS}box_head.fc7.{found[1]}"),
    (rf"roi_heads\.box_predictor\.((?:cls_score|bbox_pred)\.{REST})",
     lambda found: f"{HEADS}box_predictor.{found[1]}"),
]


def _background_first(name: str, tensor: Tensor) -> Tensor:
    if not tensor.dim():
        raise UserError(f"{name}: expected rows of classes, found one number")
    if "cls_score" in name:
        return torch.cat([tensor[-1:], tensor[:-1]])
    return torch.cat([tensor.new_zeros(4, *tensor.shape[1:]), tensor])
