"""Inputs in half precision, or a region of autocast: every function of `losses` computes in float32 all the same."""

import pytest
import torch
from torch import Tensor

from mdistiller import losses

NUMBERS = torch.Generator().manual_seed(0)
LOGITS, TEACHER, STRONG, TAUGHT = torch.randn(4, 4, 6, generator=NUMBERS).mul(5).unbind()
MAPS = [torch.randn(4, 8, 8, 8, generator=NUMBERS) * 300 for _ in range(4)]  # their squares overflow in float16
WEIGHTS, SCORES = torch.rand(6, 8, generator=NUMBERS), torch.rand(4, 6, generator=NUMBERS) + 0.5
TARGET, INDEX = torch.tensor([0, 1, 2, 5]), torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 0, 1]])
POOLED = [maps.mean((2, 3)) for maps in MAPS]
NO_LOSSES = {  # classes, a function of numbers, the identity, and the application of a user's classifier
    "SampleWeights", "Weighting", "cosine_schedule", "gradient_reversal", "multi_scale_logits",
}
CASES = {  # name of a public function -> (function of the tensors, the tensors)
    "adaptive_kl": (losses.adaptive_kl, LOGITS, TEACHER),
    "at_loss": (lambda *maps: losses.at_loss(maps[:2], maps[2:]), *MAPS),
    "catkd_loss": (losses.catkd_loss, *MAPS[:2]),
    "cka": (losses.cka, MAPS[0].flatten(2)),
    "class_activation_maps": (losses.class_activation_maps, MAPS[0], WEIGHTS),
    "confidence_masks": (losses.confidence_masks, TEACHER),
    "crd_loss": (lambda s, t: losses.crd_loss(s, t, 50), SCORES, SCORES + 0.1),
    "crld_losses": (lambda *z: losses.crld_losses(*z, 4.0, 0.2, 0.2, True), LOGITS, STRONG, TEACHER, TAUGHT),
    "ctkd_loss": (losses.ctkd_loss, LOGITS, TEACHER, SCORES[:, 0]),
    "dist_losses": (lambda s, t: losses.dist_losses(s, t, 4.0), LOGITS, TEACHER),
    "dkd_loss": (lambda s, t: losses.dkd_loss(s, t, TARGET, 1.0, 8.0, 4.0), LOGITS, TEACHER),
    "ea_weight": (losses.ea_weight, LOGITS, TEACHER),
    "entropy": (losses.entropy, LOGITS),
    "fcfd_loss": (lambda s, t, one, other, mixed: losses.fcfd_loss(s, t, [one], [other], [[mixed]], [s], 4.0),
                  LOGITS, TEACHER, *MAPS[:3]),
    "fitnet_loss": (losses.fitnet_loss, *MAPS[:2]),
    "forward_kl": (losses.forward_kl, LOGITS, TEACHER),
    "generalized_js": (losses.generalized_js, LOGITS, TEACHER),
    "hcl_loss": (lambda *maps: losses.hcl_loss(maps[:2], maps[2:]), *MAPS),
    "kd_loss": (lambda s, t: losses.kd_loss(s, logits_teacher=t, temperature=4.0), LOGITS, TEACHER),
    "kdsvd_loss": (lambda *maps: losses.kdsvd_loss(maps[:2], maps[2:]), *MAPS),
    "margin_from_bn": (losses.margin_from_bn, LOGITS[0], TEACHER[0]),
    "mld_losses": (lambda *z: losses.mld_losses(*z, 4.0, True), LOGITS, STRONG, TEACHER, TAUGHT),
    "nce_loss": (lambda scores: losses.nce_loss(scores, 50), SCORES),
    "nkd_loss": (lambda s, t: losses.nkd_loss(s, t, TARGET, 1.0, 1.5), LOGITS, TEACHER),
    "nst_loss": (lambda *maps: losses.nst_loss(maps[:2], maps[2:]), *MAPS),
    "ofd_loss": (lambda s, t, margin: losses.ofd_loss([s], [t], [margin]), *MAPS[:2], -WEIGHTS[0]),
    "pad_loss": (lambda s, t, log: losses.pad_loss(s, t, log, 1e-5), *POOLED[:2], WEIGHTS[:4]),
    "pairs_of_one_size": (lambda s, t: losses.pairs_of_one_size([s], [t[:, :, :4, :4]]), *MAPS[:2]),
    "pearson": (lambda x, y: losses.pearson(x, y, 1), LOGITS, TEACHER),
    "pkt_loss": (losses.pkt_loss, *POOLED[:2]),
    "pool_to_smaller": (lambda s, t: losses.pool_to_smaller(s, t[:, :, :4, :4]), *MAPS[:2]),
    "relation_loss": (lambda s, t, values: losses.relation_loss([(s, t, values)] * 2),
                      MAPS[0][:, 0] / 300, MAPS[1][:, 0, :, :2] / 300, SCORES[:, :2]),
    "reverse_kl": (losses.reverse_kl, LOGITS, TEACHER),
    "right_singular_vectors": (lambda maps: losses.right_singular_vectors(maps, 2), MAPS[0]),
    "rkd_loss": (losses.rkd_loss, *MAPS[:2]),
    "rld_loss": (lambda s, t: losses.rld_loss(s, t, TARGET, 1.0, 8.0, 4.0, 1.0), LOGITS, TEACHER),
    "sdd_loss": (lambda s, t: losses.sdd_loss(
        s[:, None], t[:, None], TARGET, lambda *cell: losses.kd_loss(*cell[:2], 4.0), 2.0), LOGITS, TEACHER),
    "similarities": (lambda embedding, memory: losses.similarities(embedding, memory, INDEX), LOGITS, TEACHER),
    "simkd_loss": (losses.simkd_loss, *MAPS[:2]),
    "sinkhorn_distance": (lambda p, q, cost: losses.sinkhorn_distance(p, q, cost, 0.1, 3),
                          LOGITS.log_softmax(1), TEACHER.log_softmax(1), 1 - torch.eye(6)),
    "skewed_forward_kl": (losses.skewed_forward_kl, LOGITS, TEACHER),
    "skewed_reverse_kl": (losses.skewed_reverse_kl, LOGITS, TEACHER),
    "sp_loss": (losses.sp_loss, *MAPS[:2]),
    "split_target": (lambda z: losses.split_target(z, TARGET, 4.0), LOGITS),
    "standardize": (losses.standardize, LOGITS),
    "target_loss": (lambda s, t: losses.target_loss(s, t, TARGET), LOGITS, TEACHER),
    "transport_cost": (lambda similarity: losses.transport_cost(similarity, 1.0), WEIGHTS[:, :6]),
    "ttm_loss": (lambda s, t: losses.ttm_loss(s, t, 0.1), LOGITS, TEACHER),
    "vid_loss": (losses.vid_loss, *MAPS[:2], WEIGHTS[0]),
    "weigh_entropies": (lambda s, t: losses.weigh_entropies(s, t, "ea", 2.0), SCORES[0], SCORES[1]),
    "wkd_loss": (lambda s, t, cost: losses.wkd_loss(s, t, TARGET, cost, 8.0), LOGITS, TEACHER, 1 - torch.eye(6)),
    "wttm_loss": (lambda s, t: losses.wttm_loss(s, t, 0.1), LOGITS, TEACHER),
}


def flat(result) -> list[Tensor]:
    """The tensors of a result, which may be a tensor, or tuples, lists and dicts of tensors."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in (result.values() if isinstance(result, dict) else result) for tensor in flat(part)]


def results_and_gradients(function, tensors):
    """The tensors of the result, and the gradients of their sum for each of the inputs."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found = flat(function(*inputs))
    total = sum(tensor.sum() for tensor in found if tensor.requires_grad)
    gradients = torch.autograd.grad(total, inputs, allow_unused=True) if isinstance(total, Tensor) else ()
    return found, list(gradients)


def test_every_public_function_is_tested():
    assert set(CASES) == set(losses.__all__) - NO_LOSSES


@pytest.mark.parametrize("name", CASES)
def test_half_precision_and_autocast_give_the_numbers_of_float32(name):
    function, *tensors = CASES[name]
    for dtype in (torch.float16, torch.bfloat16):
        lowered = [tensor.to(dtype) for tensor in tensors]
        found, gradients = results_and_gradients(function, lowered)
        expected, expected_gradients = results_and_gradients(function, [tensor.float() for tensor in lowered])
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other) and bool(one.isfinite().all())
        for one, other in zip(gradients, expected_gradients, strict=True):
            assert one is other is None or torch.equal(one, other.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = flat(function(*tensors))
    for one, other in zip(found, flat(function(*tensors)), strict=True):
        assert one.dtype in (torch.float32, torch.bool) and torch.equal(one, other)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("distance", [0.03, 0.3])
def test_a_divergence_of_close_networks_keeps_its_digits_in_float32(temperature, distance):
    teacher = 3 * torch.randn(32, 100, generator=NUMBERS)
    student = teacher + distance * torch.randn(32, 100, generator=NUMBERS)
    exact = losses.kd_loss(student.double(), teacher.double(), temperature)
    torch.testing.assert_close(losses.kd_loss(student, teacher, temperature).double(), exact, rtol=0, atol=1e-5)
