"""CRD: two reference steps, contrast indices, memories, several processes, and refused inputs."""

import math
from collections import Counter

import pytest
import torch
import torch.distributed as dist

from mdistiller.config import load_cfg
from mdistiller.distillers import crd
from mdistiller.distillers.crd import ContrastSampler, crd_loss, nce_loss, similarities
from mdistiller.errors import UserError
from tests.distillers.feature_support import LOOSE, PRECISIONS, TOLERANCE, fill, fixed_networks
from tests.distillers.support import Fixed, distiller_of, tiny_batch, tiny_distiller
from tests.forked import run_together
from tests.golden_files import close_relative, load, tensors


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_steps_match_the_reference(precision, monkeypatch):
    case, dtype = load("feature", "d_crd.npz"), PRECISIONS[precision]
    loss_tolerance, gradient_tolerance = (LOOSE, LOOSE) if precision == "f64" else TOLERANCE[precision]
    scores = []
    monkeypatch.setattr(crd, "crd_loss", lambda *args: scores.append(args) or crd_loss(*args))
    student, teacher, _, target = fixed_networks(dtype)
    opts = ["CRD.NCE.K", 12, "CRD.FEAT.DIM", 8]
    distiller = distiller_of("CRD", student, teacher, *opts, data_info={"num_train": 40}).to(dtype)
    for name in ("embed_s", "embed_t"):
        fill(getattr(distiller, name), case, name)
    for name in ("memory_v1", "memory_v2"):
        distiller.get_buffer(name).copy_(torch.from_numpy(case[f"{name}_init"]))
    for step in (0, 1):
        if step:
            pooled = tensors(case, "s_pooled_step1", "t_pooled_step1", dtype=dtype)
            student.features["pooled_feat"], teacher.features["pooled_feat"] = pooled[0].requires_grad_(), pooled[1]
        index, contrast = tensors(case, f"index{step}", f"contrast{step}")
        batch = {"image": torch.zeros(4, 3, 8, 8), "target": target, "index": index, "contrast": contrast}
        loss = distiller(**batch)[1]["contrast"]
        close_relative(loss, case[f"{precision}__loss_kd{step}"], loss_tolerance, f"loss {step}")
        for side, out in zip("st", scores[step], strict=False):
            close_relative(out, case[f"{precision}__out_{side}{step}"], loss_tolerance, f"scores {side}{step}")
            anchors = nce_loss(out, 40)
            assert anchors.dtype == dtype
            close_relative(anchors, case[f"{precision}__anchor_{side}{step}"], loss_tolerance, f"anchors {side}{step}")
        distiller.zero_grad()
        loss.backward()
        gradient = student.features["pooled_feat"].grad
        close_relative(gradient, case[f"{precision}__grad_s_pooled{step}"], gradient_tolerance, "gradient")
        for name in ("embed_s.linear.weight", "embed_s.linear.bias", "embed_t.linear.weight", "embed_t.linear.bias"):
            expected = case[f"{precision}__gradparam_{name}{step}"]
            close_relative(distiller.get_parameter(name).grad, expected, gradient_tolerance, name)
        for name in ("memory_v1", "memory_v2"):
            expected = case[f"{precision}__{name}_after{step}"]
            close_relative(distiller.get_buffer(name), expected, loss_tolerance, name)
        close_relative(distiller.z, case[f"{precision}__Z{step}"], loss_tolerance, "Z")


def test_noise_contrastive_estimation_by_hand():
    """One noise sample for two images: -ln(1 / 1.5) - ln(0.5 / 1.5), and -ln(2 / 2.5) - ln(0.5 / 3.5)."""
    loss = nce_loss(torch.tensor([[1.0, 1.0], [2.0, 3.0]]), 2)
    torch.testing.assert_close(loss, torch.tensor([math.log(1.5 * 3), math.log(1.25 * 7)]))
    extreme = nce_loss(torch.tensor([[1e-12, 0.0], [1e6, 1e6]]), 50000)
    assert torch.isfinite(extreme).all()


@pytest.mark.parametrize("num_data, columns", [(50, 40), (500, 3)])  # all products and a copy, or the rows gathered
def test_similarities_are_inner_products_and_outlive_an_update_of_the_memory(num_data, columns):
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(num_data, 16, generator=generator, dtype=torch.float64)
    contrast = torch.randint(num_data, (4, columns), generator=generator)
    embedding = torch.randn(4, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    scores = similarities(embedding, memory, contrast)
    expected = torch.einsum("bkd,bd->bk", memory[contrast], embedding.detach())
    torch.testing.assert_close(scores.detach(), expected)
    gradient = memory[contrast].sum(dim=1)
    memory.zero_()
    scores.sum().backward()
    torch.testing.assert_close(embedding.grad, gradient)


# --- contrast indices ------------------------------------------------------------------------------------------------

TARGETS = torch.tensor([0, 1, 0, 2, 1, 0])  # class 0 leaves images 1, 3, 4


def draw(sampler, index, times=1, seed=0):
    torch.manual_seed(seed)
    return sampler(torch.tensor([index]).expand(times))


def test_negatives_are_all_subsets_of_the_other_classes_equally_often():
    times = 30000
    contrast = draw(ContrastSampler(TARGETS, 2), index=2, times=times)
    assert contrast.shape == (times, 3) and (contrast[:, 0] == 2).all()
    counts = Counter(tuple(sorted(row)) for row in contrast[:, 1:].tolist())
    assert counts.keys() == {(1, 3), (1, 4), (3, 4)}
    deviation = math.sqrt(times * 2 / 9)
    assert all(abs(count - times / 3) < 5 * deviation for count in counts.values())
    assert torch.equal(contrast, draw(ContrastSampler(TARGETS, 2), index=2, times=times))
    assert not torch.equal(contrast, draw(ContrastSampler(TARGETS, 2), index=2, times=times, seed=1))


def test_indices_are_drawn_with_replacement_only_if_too_few_images_are_left():
    targets = torch.tensor([0] * 8 + [1] * 2 + [2] * 2)
    sampler = ContrastSampler(targets, 6)  # class 0 leaves 4 images, the others 10
    times = 20000
    scarce, plenty = draw(sampler, index=3, times=times)[:, 1:], draw(sampler, index=10, times=times)[:, 1:]
    counts = scarce.flatten().bincount(minlength=12)
    assert counts[:8].sum() == 0
    assert (counts[8:] - times * 6 / 4).abs().max() < 5 * math.sqrt(times * 6 * 3 / 16)
    assert all(len(set(row)) == 6 for row in plenty[:100].tolist()) and plenty.max() < 10
    assert (plenty.flatten().bincount() - times * 0.6).abs().max() < 5 * math.sqrt(times * 0.24)


def test_relaxed_positives_are_images_of_the_class_equally_often():
    times = 30000
    positive = draw(ContrastSampler(TARGETS, 2, relax=True), index=2, times=times)[:, 0].bincount(minlength=6)
    assert positive[[1, 3, 4]].sum() == 0
    assert (positive[[0, 2, 5]] - times / 3).abs().max() < 5 * math.sqrt(times * 2 / 9)


def test_a_batch_too_large_for_its_keys_is_drawn_in_parts(monkeypatch):
    monkeypatch.setattr(crd, "MAX_KEYS", 2 * len(TARGETS))
    index = torch.arange(5)
    contrast = ContrastSampler(TARGETS, 2)(index)
    assert contrast.shape == (5, 3) and torch.equal(contrast[:, 0], index)
    assert (TARGETS[contrast[:, 1:]] != TARGETS[index, None]).all()


@pytest.mark.parametrize("k, columns", [(5, 6), (36, 37), (40, 41), (41, 37), (16384, 37)])
def test_more_negatives_than_images_are_cut_to_what_every_class_leaves(k, columns):
    """40 images of 10 classes: 36 of other classes."""
    assert tiny_distiller("CRD", "CRD.NCE.K", k).sampler(torch.arange(4)).shape == (4, columns)


# --- state -----------------------------------------------------------------------------------------------------------


def test_only_the_rows_of_the_batch_change_and_keep_unit_length():
    distiller = tiny_distiller("CRD", "CRD.FEAT.DIM", 16, "CRD.NCE.MOMENTUM", 0.0)
    before = {name: distiller.get_buffer(name).clone() for name in ("memory_v1", "memory_v2")}
    norms = before["memory_v1"].norm(dim=1)
    assert before["memory_v1"].abs().max() <= math.sqrt(3 / 16) and 0.9 < norms.mean() < 1.1
    batch = tiny_batch() | {"index": torch.tensor([7, 3, 30, 12])}
    distiller(**batch)
    for name, old in before.items():
        new = distiller.get_buffer(name)
        assert sorted((new != old).any(dim=1).nonzero().flatten().tolist()) == [3, 7, 12, 30]
        torch.testing.assert_close(new[batch["index"]].norm(dim=1), torch.ones(4))
    with torch.no_grad():
        embedding = distiller.embed_t(distiller.teacher(batch["image"]).features["pooled_feat"])
    torch.testing.assert_close(distiller.memory_v2[batch["index"]], embedding)  # momentum 0


def test_z_is_set_in_the_first_step_and_kept_when_a_run_is_resumed():
    def step(distiller, number):
        torch.manual_seed(number)
        return distiller(**tiny_batch(seed=number))[1]["contrast"]

    unbroken, resumed = tiny_distiller("CRD"), tiny_distiller("CRD")
    assert (unbroken.z < 0).all()
    step(unbroken, 1)
    first = unbroken.z.clone()
    assert (first > 0).all()
    resumed.load_state_dict(unbroken.state_dict())
    losses = step(unbroken, 2), step(resumed, 2)
    assert torch.equal(*losses) and torch.equal(unbroken.z, first) and torch.equal(resumed.z, first)
    assert torch.equal(unbroken.memory_v1, resumed.memory_v1)
    assert not any("sampler" in key for key in unbroken.state_dict())


def crd_of(batch_size, rank=0, world_size=1):
    """CRD of fixed networks, and this process's part of five samples in two steps: uneven parts for two processes."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 6, generator=generator)
    contrast = torch.stack([torch.randperm(20, generator=generator)[:8] for _ in range(5)])
    part = [slice(0, 5)] if world_size == 1 else [slice(0, 3), slice(3, 5)]
    part = part[rank]
    networks = [Fixed(torch.zeros(5, 4)[part], {"pooled_feat": feats[part]}) for feats in features]
    torch.manual_seed(0)
    opts = ["CRD.FEAT.DIM", 4, "SOLVER.BATCH_SIZE", batch_size]
    distiller = distiller_of("CRD", *networks, *opts, data_info={"num_train": 20})
    index = torch.tensor([4, 9, 0, 17, 5])
    losses = []
    for _ in range(2):
        batch = {"image": torch.zeros(5, 3, 8, 8)[part], "target": torch.zeros(5, dtype=torch.long)[part]}
        losses.append(distiller(**batch, index=index[part], contrast=contrast[part])[1]["contrast"].detach())
    return distiller, losses


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    distiller, losses = crd_of(5, rank, world_size=2)
    state = {name: distiller.get_buffer(name) for name in ("memory_v1", "memory_v2", "z")}
    torch.save({**state, "losses": losses}, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_have_the_memory_and_z_of_one(tmp_path):
    for done in run_together([lambda rank=rank: run_rank(rank, tmp_path) for rank in range(2)]):
        assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    single, losses = crd_of(5)
    for name in ("memory_v1", "memory_v2", "z"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], single.get_buffer(name))
    for step in range(2):
        mean = (3 * first["losses"][step] + 2 * second["losses"][step]) / 5
        torch.testing.assert_close(mean, losses[step])


# --- what is refused -------------------------------------------------------------------------------------------------


def test_contrast_of_the_loader_needs_no_targets():
    networks = [Fixed(torch.zeros(4, 10), {"pooled_feat": torch.randn(4, 8)}) for _ in range(2)]
    distiller = distiller_of("CRD", *networks, data_info={"num_train": 40})
    batch = tiny_batch()
    contrast = torch.arange(4)[:, None] + torch.arange(6)
    assert torch.isfinite(distiller(**batch, contrast=contrast)[1]["contrast"])
    with pytest.raises(UserError, match="CRD needs .* training targets in data_info or `contrast`"):
        distiller(**batch)


def test_a_batch_without_index_is_refused():
    batch = tiny_batch()
    del batch["index"]
    with pytest.raises(UserError, match="CRD needs each image's `index`"):
        tiny_distiller("CRD")(**batch)


@pytest.mark.parametrize(
    "info, message",
    [
        ({}, "data_info must have num_train"),
        ({"num_train": 4, "targets": torch.zeros(4, dtype=torch.long)}, "training images of at least two classes"),
    ],
)
def test_data_that_cannot_be_contrasted_are_refused(info, message):
    networks = [Fixed(torch.zeros(4, 10), {"pooled_feat": torch.zeros(4, 8)}) for _ in range(2)]
    with pytest.raises(UserError, match=message):
        distiller_of("CRD", *networks, data_info=info)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODE", "strict", "CRD.MODE: expected one of exact, relax; found 'strict'"),
        ("NCE.K", 0, "CRD.NCE.K: expected a number at least 1 and at most 16777216; found 0"),
        ("NCE.MOMENTUM", 1.0, "CRD.NCE.MOMENTUM: expected a number at least 0 and below 1; found 1.0"),
    ],
)
def test_invalid_values_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        load_cfg(None, ["DISTILLER.TYPE", "CRD", f"CRD.{key}", value])
