"""Every method in a user's loop, with plain networks of torchvision and of timm."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import MobileNetV2, ShuffleNetV2

from mdistiller.distillers import DISTILLERS
from mdistiller.errors import UserError
from mdistiller.library import distill
from mdistiller.registry import split_ea

MISSES = {  # what a pair lacks: a word of the message that names it
    "torchvision": {"FCFD": "stages()", "OFD": "batch norm before each activation"},
    "timm": {
        "FCFD": "stages()",
        "OFD": "batch norm before each activation",
        "KDSVD": "KDSVD.POOL: True averages the larger",
        **dict.fromkeys(("CATKD", "SDD", "SIMKD"), "average their last map and classify it by one linear layer"),
    },
}
IMAGES, LABELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def tiny_pairs():
    """Library -> (student, teacher), made of the libraries' own classes; the teacher of timm is a transformer."""
    torch.manual_seed(0)
    blocks = [[1, 8, 1, 1], [2, 12, 1, 2], [2, 16, 1, 2], [2, 24, 1, 2]]
    mobile = MobileNetV2(num_classes=10, width_mult=0.25, inverted_residual_setting=blocks)
    shuffle = ShuffleNetV2([1, 1, 1], [16, 16, 32, 64, 64], num_classes=10)
    resnet = timm.create_model("test_resnet", num_classes=10)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=10)
    return {"torchvision": (mobile, shuffle), "timm": (resnet, vit)}


PAIRS = tiny_pairs()


@pytest.mark.parametrize("name", sorted(DISTILLERS))
@pytest.mark.parametrize("library", sorted(PAIRS))
def test_every_method_trains_bare_networks_or_names_what_is_missing(library, name):
    student, teacher = (deepcopy(network) for network in PAIRS[library])
    settings = {"image_size": 32, "targets": torch.arange(40) % 10, "epochs": 10}
    missing = MISSES[library].get(split_ea(name)[0])
    if missing:
        with pytest.raises(UserError) as told:
            distill(student, teacher, name, **settings)
        assert missing in str(told.value) and "\n" not in str(told.value)
        return
    kd = distill(student, teacher, name, **settings)
    kd.checked = False
    out = kd(IMAGES, LABELS, index=torch.arange(4), image_strong=IMAGES.flip(3))
    out.loss.backward()
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    assert out.logits.shape == (4, 10) and out.weight.shape == (4,)
    assert bool((out.weight == 1).all()) != (DISTILLERS[name].weighted and DISTILLERS[name].needs_teacher)
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert kd.student is student and kd.teacher is teacher
    if library == "torchvision" and split_ea(name)[1]:
        _step_in_bfloat16(kd)


def _step_in_bfloat16(kd):
    kd.bfloat16()
    half = IMAGES.bfloat16()
    out = kd(half, LABELS, index=torch.arange(4), image_strong=half.flip(3))
    out.loss.backward()
    assert bool(torch.isfinite(out.loss)) and {loss.dtype for loss in out.losses.values()} == {torch.float32}
    own = {value.dtype for name, value in kd.state_dict().items() if not name.startswith("student.")}
    assert torch.bfloat16 not in own and next(kd.teacher.parameters()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in kd.student.parameters()} == {torch.bfloat16}


def test_fcfd_trains_networks_in_bfloat16():
    _step_in_bfloat16(distill("resnet8", "resnet8", "FCFD", num_classes=10, teacher_checkpoint="random"))
