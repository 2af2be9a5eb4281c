"""The detector: torchvision's own losses, sampled proposals, the teacher's logits, small images."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from mdistiller.engine import checkpoints
from mdistiller.errors import UserError
from mdistiller.models.detection import LEVELS, pretrained, stack
from mdistiller.models.detection.parts import SeededSampler, box_losses
from tests.detection.support import detector, images, targets

BOXES = targets([[4, 6, 30, 40], [20, 20, 60, 50]], [[10, 10, 50, 50]])


@pytest.mark.parametrize("preset", ["torchvision", "detectron2"])
def test_losses_equal_those_of_torchvisions_own_forward_to_the_last_bit(preset):
    net = detector(preset=preset, pixels="rgb").train()
    pictures = images((64, 64), (50, 60))
    torch.manual_seed(3)
    ours = net.train_pass(pictures, BOXES).task_losses
    torch.manual_seed(3)
    theirs = net.model([picture.float() for picture in pictures], BOXES)
    pairs = {"rpn_cls": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "cls": "loss_classifier"}
    pairs |= {"box": "loss_box_reg"} if preset == "torchvision" else {}  # torchvision's own is smooth, ours L1
    for name, other in pairs.items():
        assert torch.equal(ours[name], theirs[other]), name
    assert preset == "torchvision" or not torch.equal(ours["box"], theirs["loss_box_reg"])


@pytest.mark.parametrize("preset", ["torchvision", "detectron2"])
@torch.no_grad()
def test_boxes_of_autocast_are_those_that_float32_offsets_give(preset):
    """In bfloat16, a coordinate of this image would be a multiple of 2."""
    net, pictures = detector(preset=preset).eval(), images((448, 448))
    rpn, heads, batch = net.model.rpn, net.model.roi_heads, net.batch(pictures)
    given = []
    for part in (rpn.head, heads.box_predictor):
        part.register_forward_hook(lambda module, inputs, output: given.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = net.detect(batch)
    maps = [torch.zeros(one.shape) for one in net.features(batch)]
    rpn.head, heads.box_predictor = (torch.nn.Sequential() for _ in range(2))
    rpn.head.forward, heads.box_predictor.forward = (lambda *_, output=output: output for output in given)
    proposals, _ = rpn(batch, dict(enumerate(maps)))
    (expected,) = heads(dict(zip(("p2", "p3", "p4", "p5"), maps, strict=False)), proposals, batch.image_sizes)[0]
    assert len(found["boxes"]) and {one.dtype for one in found.values()} == {torch.float32, torch.int64}
    assert torch.equal(found["boxes"], expected["boxes"])


def test_detections_of_an_image_do_not_depend_on_the_others_of_its_batch():
    net = detector().eval()
    pictures, sizes = images((40, 96), (64, 64), (33, 90), (96, 40)), [(80, 192), (64, 64), (33, 90), (192, 80)]
    together = net.detect(pictures, sizes)
    for found, picture, size in zip(together, pictures, sizes, strict=True):
        (alone,) = net.detect([picture], [size])
        assert len(alone["boxes"]) > 2
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    padded = net.detect(net.batch(pictures), sizes)  # all to the largest sides
    assert not all(len(one["scores"]) == len(two["scores"]) and torch.allclose(one["scores"], two["scores"])
                   for one, two in zip(padded, together, strict=True))


@pytest.mark.parametrize("preset", ["torchvision", "detectron2"])
def test_targets_of_autocast_are_those_of_the_boxes_as_they_were_given(preset):
    net, boxes = detector(preset=preset).train(), targets([[300.3, 210.7, 400.1, 410.9]])
    with torch.autocast("cpu", torch.bfloat16):
        step = net.train_pass(images((448, 448)), boxes, [1])
    (proposals,) = step.sampled.proposals
    assert proposals.dtype == step.logits.dtype == step.sampled.deltas.dtype == torch.float32
    assert (proposals == boxes[0]["boxes"]).all(dim=1).any()  # a box is one of the proposals that it is matched with


def test_sampled_proposals_are_a_function_of_the_seeds_alone():
    net = detector().train()
    pictures = images((64, 64), (64, 64))
    both = net.train_pass(pictures, BOXES, [5, 6]).sampled
    torch.manual_seed(99)
    again = net.train_pass(pictures, BOXES, [5, 6]).sampled
    alone = net.train_pass(pictures[1:], BOXES[1:], [6]).sampled
    other = net.train_pass(pictures, BOXES, [7, 8]).sampled
    assert torch.equal(both.proposals[0], again.proposals[0])
    torch.testing.assert_close(both.proposals[1], alone.proposals[0], atol=1e-3, rtol=0)
    assert not torch.equal(both.proposals[0], other.proposals[0])


def test_the_seeded_sampler_has_the_requested_share_of_foreground():
    labels = torch.tensor([1] * 10 + [0] * 100 + [-1] * 50)
    sampler = SeededSampler(16, 0.25, stream=0)
    sampler.seeds = [1]
    (positive,), (negative,) = sampler([labels])
    assert positive.sum() == 4 and negative.sum() == 12
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    (positive,), (negative,) = sampler([torch.tensor([1, 0, 0, -1])])  # fewer than the sampler may take
    assert positive.sum() == 1 and negative.sum() == 2


def test_the_teacher_computes_logits_for_the_students_boxes():
    student, teacher = detector().train(), detector("r34").eval()
    pictures = stack(images((64, 64), (64, 64)))

    def logits():
        sampled = student.train_pass(student.normalise(pictures), BOXES, [1, 2]).sampled
        with torch.no_grad():
            return teacher.box_logits(teacher.features(teacher.normalise(pictures)), sampled.proposals,
                                      sampled.image_sizes)[0]

    before = logits()
    torch.nn.init.normal_(teacher.model.rpn.head.bbox_pred.weight, std=0.1)
    assert torch.equal(logits(), before)
    torch.nn.init.normal_(student.model.rpn.head.bbox_pred.weight, std=0.1)
    after = logits()
    assert after.shape != before.shape or not torch.equal(after, before)


def test_an_image_of_forty_pixels_is_pooled_with_the_strides_of_the_levels():
    net = detector().eval()
    net.detect(images((40, 40)))
    assert net.model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    big = net.features(images((128, 128), seed=1))
    first, _ = net.box_logits(big, [BOXES[0]["boxes"]], [(128, 128)])
    fresh, _ = detector().eval().box_logits(big, [BOXES[0]["boxes"]], [(128, 128)])
    assert torch.equal(first, fresh)  # the scales do not depend on the first image


def test_both_networks_get_the_same_pixels_and_the_padding_is_zero_after_normalisation():
    pictures = images((40, 60), (64, 32))
    shared = stack(pictures)
    assert shared.tensors.shape == (2, 3, 64, 64) and shared.image_sizes == [(40, 60), (64, 32)]
    for pixels, order in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        net = detector(pixels=pixels)
        batch = net.normalise(shared)
        mean, std = (torch.tensor(values)[:, None, None] for values in
                     (net.model.transform.image_mean, net.model.transform.image_std))
        for number, picture in enumerate(pictures):
            height, width = picture.shape[1:]
            expected = (picture[order].float() - mean) / std
            assert torch.equal(batch.tensors[number, :, :height, :width], expected)
            assert not batch.tensors[number, :, height:].any() and not batch.tensors[number, :, :, width:].any()


def test_an_image_without_a_box_and_no_proposals_at_all_give_finite_losses():
    net = detector().train()
    losses = net.train_pass(images((64, 64)), targets([]), [1]).task_losses
    assert losses["box"] == 0 and all(torch.isfinite(loss) for loss in losses.values())
    logits, deltas = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 20, requires_grad=True)
    nothing = box_losses(logits, deltas, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0.0)
    sum(nothing.values()).backward()
    assert nothing["cls"] == 0 and nothing["box"] == 0 and logits.grad.shape == (0, 5)


def test_the_published_networks_have_the_published_sizes():
    def millions(name, learning=False):
        net = detector(name, 80, norm="frozen", width=1.0, channels=256, head_channels=1024, freeze=2)
        return sum(p.numel() for p in net.parameters() if p.requires_grad or not learning) / 1e6

    background = 4 * 1025 / 1e6  # torchvision gives the background offsets of its own
    for name, size in (("r18", 28.67), ("mv2", 19.16), ("r50", 41.70)):
        assert millions(name) - background == pytest.approx(size, abs=0.01), name
    assert millions("r18", learning=True) - background == pytest.approx(28.52, abs=0.01)


def test_stride_of_the_bottlenecks_by_preset():
    for preset, strides in (("detectron2", [(2, 2), (1, 1)]), ("torchvision", [(1, 1), (2, 2)])):
        block = detector("r50", preset=preset).model.backbone.body.layer2[0]
        assert [block.conv1.stride, block.conv2.stride] == strides


@pytest.mark.parametrize("name", ["r18", "mv2"])
@torch.no_grad()
def test_a_pretrained_backbone_gives_the_maps_of_its_library(name, monkeypatch):
    torch.manual_seed(1)
    library = torchvision.models.get_model(pretrained.NAMES[name]).eval()
    monkeypatch.setattr(pretrained, "library_weights", lambda *names: library.state_dict())
    net = detector(name, width=1.0, norm="frozen", pixels="bgr").eval()  # means in another order, std 1
    pretrained.load_library_body(net, name)
    (picture,) = images((64, 64))
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])[:, :, None, None]
    x = ((picture - mean) / std)[None]
    if name == "r18":
        x = library.layer1(library.maxpool(library.relu(library.bn1(library.conv1(x)))))
    else:
        x = library.features[:4](x)
    found = net.model.backbone.body(net.batch([picture]).tensors)["p2"]
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_a_pretrained_backbone_of_another_form_is_refused(monkeypatch):
    monkeypatch.setattr(pretrained, "library_weights", lambda *names: torchvision.models.resnet18().state_dict())
    with pytest.raises(UserError, match="expected MODEL.NORM frozen, bn or sync and a width of 1.0"):
        pretrained.load_library_body(detector("r18", width=0.5), "r18")
    with pytest.raises(UserError, match="pretrained r50 has strides of MODEL.PRESET torchvision"):
        pretrained.load_library_body(detector("r50"), "r50")


def test_anchors_of_the_coarsest_level_are_64_pixels_apart_whatever_the_size():
    net = detector()
    batch = ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)])
    anchors = net.model.rpn.anchor_generator(batch, net.features(batch))[0][-12:]
    centres = np.unique(((anchors[:, :2] + anchors[:, 2:]) / 2).numpy().round(3))
    assert centres.tolist() == [0.0, 64.0]


def test_an_unknown_network_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match="unknown detector 'r19': expected one of r18, r34, r50, r101, mv2"):
        detector("r19")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_detector_of_torchvision_is_loaded_and_finds_the_same_boxes(tmp_path, wrapped):
    parts = {"rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
    ours = detector("r50", 3, preset="torchvision", norm="bn", box_score_thresh=0.0).eval()
    backbone = detector("r50", 3, preset="torchvision", norm="bn").model.backbone
    torch.manual_seed(1)
    theirs = FasterRCNN(backbone, box_head=TwoMLPHead(16 * 49, 32), box_predictor=FastRCNNPredictor(32, 4),
                        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, 2), min_size=64, max_size=96, **parts).eval()
    with torch.no_grad():
        for one in theirs.parameters():
            one.normal_(0, 0.1)
    state = theirs.state_dict()
    torch.save({"model": state, "args": Namespace(lr=1)} if wrapped else state, tmp_path / "own.pth")
    checkpoints.load_network(ours, tmp_path / "own.pth", "r50 with 3 classes")
    pixels = images((64, 80), (64, 64))
    with torch.no_grad():
        expected = [theirs([one / 255])[0] for one in pixels]
    for found, wanted in zip(ours.detect(pixels), expected, strict=True):
        assert len(wanted["boxes"]) > 3 and torch.equal(found["labels"], wanted["labels"])
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"box_predictor.bbox_pred.bias is \(16,\) in the file and \(28,\) in the net"):
        checkpoints.load_network(detector("r50", 6, preset="torchvision", norm="bn"), tmp_path / "own.pth", "r50")
