"""WKD-L: transport computed by hand, the log domain compared with plain Sinkhorn, and the costs."""

import math
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers.last_map import classifier_of
from mdistiller.errors import UserError
from mdistiller.losses.wkd import cka, sinkhorn_distance, transport_cost, wkd_loss
from tests.distillers.support import tiny_batch, tiny_distiller


def random_problem(batch=4, classes=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, batch, classes, generator=generator, dtype=dtype).log_softmax(dim=2)
    cost = torch.rand(classes, classes, generator=generator, dtype=dtype).fill_diagonal_(0)
    return p, q, (cost + cost.mT) / 2


def test_between_two_classes_the_transport_moves_the_difference():
    p, q = torch.tensor([[0.7, 0.3]]).double().log(), torch.tensor([[0.2, 0.8]]).double().log()
    distance = sinkhorn_distance(p, q, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), reg=0.02, iterations=50)
    torch.testing.assert_close(distance, torch.tensor([0.5]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_target_class_is_left_out(temperature):
    # without class 1: teacher (.75, .25), student (.25, .75); half of the probability moves at cost .4
    teacher, student = torch.tensor([[0.3, 0.6, 0.1]]).double().log(), torch.tensor([[0.2, 0.2, 0.6]]).double().log()
    cost = torch.tensor([[0.0, 0.9, 0.4], [0.9, 0.0, 0.9], [0.4, 0.9, 0.0]]).double()
    logits = temperature * student, temperature * teacher
    loss = wkd_loss(*logits, torch.tensor([1]), cost, temperature, reg=0.02, iterations=200)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.4]).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("iterations", [1, 10])
def test_the_log_domain_gives_what_plain_sinkhorn_gives_value_and_gradient(iterations):
    p, q, cost = random_problem()
    p.requires_grad_()
    plain = []
    for row_p, row_q in zip(p.exp(), q.exp(), strict=True):
        kernel, u = torch.exp(-cost / 0.05), torch.ones_like(row_p)
        for _ in range(iterations):
            v = row_q / (kernel.mT @ u)
            u = row_p / (kernel @ v)
        plain.append((u[:, None] * kernel * v * cost).sum())
    ours = sinkhorn_distance(p, q, cost, 0.05, iterations)
    torch.testing.assert_close(ours, torch.stack(plain))
    gradients = [torch.autograd.grad(loss.sum(), p, retain_graph=True)[0] for loss in (ours, torch.stack(plain))]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [1e3, 1e-3])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_extreme_logits_give_finite_losses_and_gradients(scale, num_classes):
    generator = torch.Generator().manual_seed(0)
    student, teacher = scale * torch.randn(2, 4, num_classes, generator=generator)
    student.requires_grad_()
    cost = transport_cost(torch.eye(num_classes), sharpness=1.0)
    loss = wkd_loss(student, teacher, torch.zeros(4, dtype=torch.long), cost, temperature=1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(student.grad).all() and (loss >= 0).all()


def test_cka_of_three_classes_by_hand():
    line, double, valley = [-1.0, 0.0, 1.0], [5.0, 7.0, 9.0], [1.0, -2.0, 1.0]
    features = torch.tensor([line, double, valley])[:, :, None]
    # the second is twice the first, moved; the third is orthogonal to both
    torch.testing.assert_close(cka(features), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_cost_is_zero_for_the_same_class_and_grows_with_distance():
    cost = transport_cost(torch.tensor([[0.9, 0.0], [0.5, 0.0]]), sharpness=2.0)
    torch.testing.assert_close(cost, torch.tensor([[0.0, 1 - math.exp(-2)], [1 - math.exp(-1), 0.0]]))


def test_the_weight_is_constant_then_falls_by_half_a_cosine():
    distiller = tiny_distiller("WKD", "SOLVER.EPOCHS", 240)
    weights = [distiller.weight_at(epoch) for epoch in (1, 150, 195, 240, 300)]
    assert weights == pytest.approx([600, 600, 300, 0, 0])
    distiller = tiny_distiller("WKD", "SOLVER.MAX_ITER", 40, "SOLVER.EVAL_PERIOD", 10, "WKD.LOSS.COSINE_DECAY_EPOCH", 2)
    assert [distiller.weight_at(epoch) for epoch in (2, 3, 4)] == pytest.approx([600, 300, 0])


class Images:
    """Training images of a data set: the requested batches, two images each."""

    def __init__(self, targets):
        self.info = SimpleNamespace(targets=targets)
        self.images = torch.randn(len(targets), 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def plain_batches(self, index):
        for low in range(0, len(index), 2):
            yield {"image": self.images[index[low:low + 2]]}


@pytest.mark.parametrize("most", [2, 100])
def test_costs_come_from_every_position_of_the_first_images_of_each_class(most):
    distiller = tiny_distiller("WKD", "WKD.SAMPLES", most).eval()
    weight = torch.nn.functional.normalize(classifier_of(distiller.teacher).weight, dim=1)
    torch.testing.assert_close(distiller.cost, transport_cost(weight @ weight.mT, 1.0))
    data = Images(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 3 + [4]))
    distiller.prepare(data)
    with torch.no_grad():
        maps = distiller.teacher(data.images).features["feats"][-1]  # (31, D, 8, 8)
    chosen = [[c, 10 + c, 20 + c][:most] for c in range(10)]
    samples = torch.stack([torch.cat([maps[image].flatten(1).T for image in images]) for images in chosen])
    assert samples.shape[1] == 64 * min(most, 3)
    centred = samples - samples.mean(dim=1, keepdim=True)
    kernels = torch.nn.functional.normalize((centred @ centred.mT).flatten(1), dim=1)  # as the alignment is defined
    torch.testing.assert_close(distiller.cost, transport_cost(kernels @ kernels.mT, 1.0), rtol=1e-3, atol=1e-5)


def test_a_class_without_images_leaves_the_cosines():
    distiller = tiny_distiller("WKD").eval()
    before = distiller.cost.clone()
    distiller.prepare(Images(torch.arange(9)))
    assert torch.equal(distiller.cost, before)


def test_a_resumed_run_has_the_same_costs_and_an_old_state_loads():
    straight, resumed = tiny_distiller("WKD"), tiny_distiller("WKD")
    straight.eval().prepare(Images(torch.arange(30) % 10))
    state = straight.train().state_dict()
    resumed.load_state_dict({**state, "samples": torch.zeros(10, 3, 64), "counts": torch.zeros(10)})
    losses = [distiller(**tiny_batch())[1]["wkd"] for distiller in (straight, resumed)]
    assert torch.equal(straight.cost, resumed.cost) and torch.equal(*losses)


def test_an_old_state_from_before_its_costs_were_measured_is_refused():
    resumed = tiny_distiller("WKD")
    state = {**resumed.state_dict(), "samples": torch.zeros(10, 3, 64), "counts": torch.zeros(10)}
    with pytest.raises(ValueError, match="measured the class costs after the first epoch, and was stopped before"):
        resumed.load_state_dict(state)


def test_costs_from_a_file(tmp_path):
    distances = torch.rand(10, 10, generator=torch.Generator().manual_seed(0))
    torch.save(distances, tmp_path / "cost.pth")
    distiller = tiny_distiller("WKD", "WKD.COST_MATRIX_PATH", str(tmp_path / "cost.pth"))
    torch.testing.assert_close(distiller.cost, (1 - torch.exp(-distances)).fill_diagonal_(0))
    for name, content in (("small.pth", torch.zeros(3, 3)), ("text.pth", {"a": 1})):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=f"WKD.COST_MATRIX_PATH: .*{name}.*10"):
            tiny_distiller("WKD", "WKD.COST_MATRIX_PATH", str(tmp_path / name))
    with pytest.raises(UserError, match="WKD.COST_MATRIX_PATH: missing.pth: cannot be read"):
        tiny_distiller("WKD", "WKD.COST_MATRIX_PATH", "missing.pth")
