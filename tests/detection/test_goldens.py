"""The mathematics on (N, 81) logits, boxes, anchors and a whole detector, against detectron2 and the references."""

import pytest
import torch

from mdistiller.distillers.dkd import dkd_loss
from mdistiller.distillers.ea import ea_weight
from mdistiller.distillers.kd import kd_loss, regression_loss
from mdistiller.distillers.reviewkd import ABF, hcl_loss
from mdistiller.functional import entropy
from mdistiller.models.detection import LEVELS, Detector
from mdistiller.models.detection.convert import convert_detectron2
from mdistiller.models.detection.parts import (
    PRESETS,
    LevelPooler,
    anchors_of,
    box_levels,
    box_losses,
)
from mdistiller.tasks import TaskOutput
from mdistiller.tasks.detection import offsets
from tests.detection.support import golden

G = golden()
EXACT, RELEASED = 1e-9, 1e-6


def same(actual, expected, rtol=EXACT, atol=1e-12):
    torch.testing.assert_close(actual.detach(), expected, rtol=rtol, atol=atol)


def logits():
    return G["logit.z_s"].clone().requires_grad_(), G["logit.z_t"]


def with_gradient(name, loss, student, rtol):
    same(loss, G[f"{name}.value"], rtol)
    loss.backward()
    same(student.grad, G[f"{name}.grad"], rtol, 1e-9)


def test_kd_and_its_gradient_equal_the_reference():
    student, teacher = logits()
    each = kd_loss(student, teacher, 1.0)
    same(each, G["kd.T1.per_proposal"])
    with_gradient("kd.T1", each.mean(), student, EXACT)


@pytest.mark.parametrize(("name", "beta"), [("dkd.a1_b0.25_T1", 0.25), ("dkd.a1_b0_T1", 0.0)])
def test_dkd_with_background_as_a_class_equals_the_reference(name, beta):
    student, teacher = logits()
    each = dkd_loss(student, teacher, G["logit.labels"], 1.0, beta, 1.0)
    same(each, G[f"{name}.per_proposal"])
    with_gradient(name, each.mean(), student, EXACT)


@pytest.mark.parametrize("temperature", [1, 3])
def test_entropies_and_weights_include_the_background(temperature):
    student, teacher = logits()
    same(torch.tensor(81.0, dtype=torch.float64).log(), G["ea.H_ub"])
    same(entropy(teacher, temperature), G[f"ea.t{temperature}.H_t"])
    same(entropy(student, temperature), G[f"ea.t{temperature}.H_s"])
    weight = ea_weight(student, teacher, temperature)
    same(weight, G[f"ea.t{temperature}.w"])
    same(weight, G[f"ea.t{temperature}.w_release"], RELEASED, 1e-7)


@pytest.mark.parametrize(("name", "t", "T"), [
    ("ea_kd.t3_T1", 3, 1.0), ("ea_kd.t1_T1", 1, 1.0), ("ea_kd.t1_T4", 1, 4.0),
])
def test_ea_kd_equals_the_reference(name, t, T):
    student, teacher = logits()
    loss = (ea_weight(student, teacher, t) * kd_loss(student, teacher, T)).mean()
    with_gradient(name, loss, student, RELEASED)


def test_ea_dkd_weighs_the_whole_of_a_proposal():
    student, teacher = logits()
    each = dkd_loss(student, teacher, G["logit.labels"], 1.0, 0.25, 1.0)
    with_gradient("ea_dkd.t3_a1_b0.25_T1", (ea_weight(student, teacher, 3) * each).mean(), student, RELEASED)


def test_variants_image_level_and_constant():
    student, teacher = logits()
    group = torch.repeat_interleave(torch.arange(2), G["logit.image_sizes"])
    each = kd_loss(student, teacher, 1.0)
    for level in ("image", "mean_weight"):
        by_image = ea_weight(student, teacher, 3, group=group, level=level)
        same((by_image * each).mean(), G["variant.kd_image.value"])
    same((ea_weight(student, teacher, 3, "constant") * each).mean(), G["variant.kd_constant.value"])


def test_losses_do_not_depend_on_the_position_of_the_background():
    student, teacher = logits()
    first = [torch.cat([z[:, -1:], z[:, :-1]], dim=1) for z in (student, teacher)]
    labels = G["order.labels_bg_first"]
    assert torch.equal(labels, (G["logit.labels"] + 1) % 81)
    for last, moved in (
        (kd_loss(student, teacher, 1.0), kd_loss(*first, 1.0)),
        (dkd_loss(student, teacher, G["logit.labels"], 1.0, 0.25, 1.0), dkd_loss(*first, labels, 1.0, 0.25, 1.0)),
        (ea_weight(student, teacher), ea_weight(*first)),
    ):
        same(moved, last)


def exact_dkd(student, teacher, target, beta):
    """DKD at alpha 1 and temperature 1, written out in float64: KL of (target, rest) plus beta times KL of the rest."""
    found = []
    for z_s, z_t, label in zip(student, teacher, target.tolist(), strict=True):
        pairs, rests = [], []
        for z in (z_s, z_t):
            rest = torch.cat([z[:label], z[label + 1:]])
            pair = torch.stack([z[label], rest.logsumexp(0)])
            pairs.append(pair - pair.logsumexp(0))
            rests.append(rest - rest.logsumexp(0))
        tckd, nckd = (torch.sum(log_t.exp() * (log_t - log_s)) for log_s, log_t in (pairs, rests))
        found.append(tckd + beta * nckd)
    return torch.stack(found)


def test_extreme_logits_stay_finite_in_float32_with_a_finite_gradient():
    student, teacher = G["extreme.z_s"].float().requires_grad_(), G["extreme.z_t"].float()
    each = dkd_loss(student, teacher, G["extreme.labels"], 1.0, 0.25, 1.0)
    same(each.double(), exact_dkd(G["extreme.z_s"], G["extreme.z_t"], G["extreme.labels"], 0.25), 1e-5)
    assert not torch.isfinite(G["extreme.dkd_reference_float32"]).any()  # the published code fails on these logits
    each.sum().backward()
    assert torch.isfinite(each).all() and torch.isfinite(student.grad).all()


def test_entropy_of_one_logit_above_eighty():
    for row in G["entropy.table"]:  # the logit, its probability, and the entropy at three temperatures
        z = torch.zeros(1, 81, dtype=torch.float64)
        z[0, 0] = row[0]
        for column, temperature in enumerate((1, 2, 3), start=2):
            same(entropy(z, temperature)[0], row[column], 1e-9, 1e-9)


def test_the_squared_distance_of_box_offsets_leaves_out_the_background():
    ours = [torch.cat([G[f"logit.delta_{side}"].new_full((14, 4), value), G[f"logit.delta_{side}"]], dim=1)
            for side, value in (("s", 3.0), ("t", -7.0))]  # four columns of the background in front
    outputs = [TaskOutput(delta, regression=offsets(delta)) for delta in ours]
    same(regression_loss(*outputs).mean(), G["boxl2.value"])


def review_feats(side):
    return [G[f"review.f_{side}{level}"].clone().requires_grad_() for level in range(5)]


def test_hierarchical_context_loss_by_level_and_by_image():
    student, teacher = review_feats("s"), review_feats("t")
    same(hcl_loss(student, teacher).mean(), G["review.hcl.value"])
    each = torch.stack([hcl_loss([s], [t]).mean() for s, t in zip(student, teacher, strict=True)])
    same(each, G["review.hcl.per_level"])


def test_reviewkd_on_five_levels_equals_the_reference():
    student, teacher = review_feats("s"), review_feats("t")
    abfs = torch.nn.ModuleList(ABF(8, 8, 8, fuse=place > 0) for place in range(5)).double()
    abfs.load_state_dict({key.removeprefix("review.state.abfs."): value for key, value in G.items()
                          if key.startswith("review.state.")})
    results, fused = [], None
    for abf, s, t in zip(abfs, student[::-1], teacher[::-1], strict=True):
        result, fused = abf(s, t.shape[2:], fused)
        results.insert(0, result)
    for level, result in enumerate(results):
        same(result, G[f"review.train.out{level}"])
    loss = hcl_loss(results, teacher).mean()
    same(loss, G["review.train.value"])
    loss.backward()
    for level, feat in enumerate(student):
        same(feat.grad, G[f"review.train.grad_f_s{level}"], EXACT, 1e-9)


@pytest.mark.parametrize(("library", "cls"), [("detectron2", "loss_cls"), ("torchvision", "loss_classifier")])
def test_box_losses_equal_those_of_both_libraries(library, cls):
    deltas = torch.cat([torch.zeros(14, 4, dtype=torch.float64), G["logit.delta_s"]], dim=1)
    z = torch.cat([G["logit.z_s"][:, -1:], G["logit.z_s"][:, :-1]], dim=1)
    losses = box_losses(z, deltas, G["order.labels_bg_first"], G["box.targets"], PRESETS[library].beta)
    same(losses["cls"], G[f"box.{library}.{cls}"])
    same(losses["box"], G[f"box.{library}.loss_box_reg"], 1e-7)  # detectron2 holds boxes in float32


def test_offsets_are_encoded_as_the_references_do():
    from torchvision.models.detection._utils import BoxCoder

    foreground = G["logit.labels"] < 80
    encoded = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(G["box.gt"], G["box.proposals"])
    same(encoded[foreground], G["box.targets"][foreground], 1e-9, 1e-9)


@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
def test_boxes_are_assigned_to_the_levels_of_the_reference(library):
    sizes = G["level.sizes"]
    boxes = torch.stack([torch.zeros_like(sizes), torch.zeros_like(sizes), sizes, sizes], dim=1)
    assert torch.equal(box_levels(boxes, PRESETS[library]) + 2, G["level.torchvision"])


@pytest.mark.parametrize(("library", "name"), [("detectron2", "detectron2"), ("torchvision", "torchvision_default")])
def test_pooled_maps_equal_those_of_both_libraries(library, name):
    pooler = LevelPooler(PRESETS[library], ["p2"])
    pooler.scales = [0.25]
    pooled = pooler({"p2": G["pool.feature"]}, [G["pool.boxes"]], [(32, 32)])
    same(pooled, G[f"pool.{name}"], 1e-5, 1e-5)


@pytest.mark.parametrize("library", ["detectron2", "torchvision"])
def test_anchors_equal_those_of_both_libraries(library):
    from torchvision.models.detection.image_list import ImageList

    expected = G[f"anchor.{library}"]
    anchors = anchors_of(PRESETS[library], (32,))
    found = anchors(ImageList(torch.zeros(1, 3, 8, 8), [(8, 8)]), [torch.zeros(1, 1, 2, 2)])[0]
    same(found, expected, 1e-5, 1e-4)


def converted(preset):
    arrays = golden("detectron2")
    net = Detector("r50", 80, preset, width=8 / 64, channels=16, head_channels=32, pixels="bgr",
                   rpn_post_nms_top_n_test=60, box_score_thresh=0.02, box_detections_per_img=30).eval()
    state = {key.removeprefix("state."): value for key, value in arrays.items() if key.startswith("state.")}
    net.load_state_dict(convert_detectron2(state))
    return net, [arrays[name].flip(0) for name in ("image0", "image1")], arrays  # stored as BGR


@torch.no_grad()
def test_a_detectron2_network_gives_detectron2s_outputs():
    net, pictures, arrays = converted("detectron2")
    batch = net.batch(pictures)
    assert list(batch.tensors.shape) == arrays["batched"].tolist()
    feats = net.features(batch)
    for level, feat in enumerate(feats, start=2):
        same(feat, arrays[f"feat.p{level}"], 1e-4, 1e-4)
    scores, deltas = net.model.rpn.head(feats)
    for level in range(5):
        same(scores[level], arrays[f"rpn.logits.p{level + 2}"], 1e-4, 1e-4)
        same(deltas[level], arrays[f"rpn.deltas.p{level + 2}"], 1e-4, 1e-4)
    proposals, _ = net.model.rpn(batch, dict(enumerate(feats)))
    for image, found in enumerate(proposals):
        assert torch.cdist(found, arrays[f"proposals{image}"], p=float("inf")).amin(0).max() < 1e-3
    boxes = [arrays["roi.boxes0"], arrays["roi.boxes1"]]
    pooled = net.model.roi_heads.box_roi_pool(dict(zip(LEVELS, feats, strict=False)), boxes, batch.image_sizes)
    same(pooled, arrays["roi.pooled"], 1e-4, 1e-4)
    logits, deltas = net.box_logits(feats, boxes, batch.image_sizes)
    same(logits, torch.cat([arrays["roi.scores"][:, -1:], arrays["roi.scores"][:, :-1]], dim=1), 1e-4, 1e-4)
    same(deltas[:, 4:], arrays["roi.deltas"], 1e-4, 1e-4)
    for image, found in enumerate(net.detect(batch, [(96, 128), (160, 200)])):
        same(found["boxes"], arrays[f"det{image}.boxes"], 0, 1e-3)
        same(found["scores"], arrays[f"det{image}.scores"], 1e-4, 1e-4)
        assert torch.equal(found["labels"] - 1, arrays[f"det{image}.classes"])


@torch.no_grad()
def test_the_torchvision_preset_does_not_give_them():
    net, pictures, arrays = converted("torchvision")
    assert (net.features(pictures)[0] - arrays["feat.p2"]).abs().max() > 0.1
