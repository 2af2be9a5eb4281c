"""FCFD: iterations on real pairs compared with the reference, side effects of mixed passes, and refused inputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.config import load_cfg
from mdistiller.distillers import fcfd
from mdistiller.distillers.fcfd import FCFD, bridge, fcfd_loss, still_statistics
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.distillers.support import Fixed, distiller_of, tiny_batch, tiny_distiller
from tests.golden_files import FEATURE, close_relative, load
from tests.models.support import filled, norms, recipe_images

EXACT = FEATURE["tolerance"]["fcfd float64 (losses, logits, per-sample terms)"]
STATISTICS = FEATURE["tolerance"]["fcfd gradstat (relative to the largest norm in the table)"]
TOTAL_F32 = FEATURE["tolerance"]["fcfd total_loss_f32"]
CASES = sorted(file for file in FEATURE["files"] if file.startswith("fcfd_"))
BRIDGE_BASES = {"bridges": 30000, "bridges_back": 31000}  # plus 100 times the stage


def path_of(digits):
    """(direction, stage after which it switches) of a path written as the network (0 teacher, 1 student) per stage."""
    networks = digits.split(".")
    return ("s2t" if networks[0] == "1" else "t2s"), networks.index(networks[-1]) - 1


def run(file, monkeypatch, dtype=torch.float64):
    """One iteration: (manifest entry, arrays, distiller, logits, losses, arguments and result of fcfd_loss)."""
    entry, case, calls = FEATURE["files"][file], load("feature", file), []

    def recorded(*args):
        calls.append((args, fcfd_loss(*args)))
        return calls[0][1]

    monkeypatch.setattr(fcfd, "fcfd_loss", recorded)
    student, teacher = (
        filled(build_model(entry[role], 100), "B", entry[f"fill_base_{role}"]) for role in ("student", "teacher")
    )
    opts = ["FCFD.TEMPERATURE", entry["T"], "FCFD.FEAT_WEIGHT", entry["weight_l2"],
            "FCFD.MIX_WEIGHT", entry["mixture_kl_weight"]]
    distiller = distiller_of("FCFD", student, teacher, *opts)
    for name, base in BRIDGE_BASES.items():
        for stage, module in enumerate(getattr(distiller, name), start=1):
            filled(module, "B", base + 100 * stage)
    distiller.to(dtype)
    monkeypatch.setattr(distiller, "draw_paths", lambda: [path_of(digits) for digits in entry["paths"][2:]])
    image = recipe_images(entry["input_seed"], entry["batch"], 32).to(dtype)
    logits, losses = distiller(image=image, target=torch.as_tensor(case["labels"]), epoch=entry["epoch"] + 1)
    return entry, case, distiller, logits, losses, *calls[0]


def mean_square(feat, feat_teacher):
    return (feat - feat_teacher).square().flatten(1).mean(1)


def pooled(feat):
    return F.adaptive_avg_pool2d(F.relu(feat), 1)


@pytest.mark.parametrize("file", CASES)
def test_every_term_of_an_iteration_matches_the_reference(file, monkeypatch):
    entry, case, distiller, logits, losses, args, groups = run(file, monkeypatch)
    logits_student, logits_teacher, feats_bridged, feats_teacher, feats_mixed, logits_mixed, _ = args
    mixed = sorted(entry["paths"][2:], reverse=True)  # those that start in the student come first
    into_teacher = [path for path in mixed if path.startswith("1")]
    of_path = dict(zip(entry["paths"][:2], (logits_teacher, logits_student), strict=True))
    of_path |= dict(zip(mixed, logits_mixed, strict=True))
    for path, found in of_path.items():
        close_relative(found, case[f"logits__{path}"], EXACT, path)
    last, checked = entry["n_stages"] - 1, {"appearance": 0, "functional": 0}
    for group, prefix, feats in [("appearance", entry["paths"][1], feats_bridged)] + [
        ("functional", path, feats) for path, feats in zip(into_teacher, feats_mixed, strict=True)
    ]:
        for stage, feat in zip(range(last, 0, -1), reversed(feats), strict=False):
            feat_teacher, name = feats_teacher[stage - 1], f"stage{stage}__{prefix[: 2 * stage + 1]}"
            close_relative(mean_square(feat, feat_teacher), case[f"l2__{name}"], EXACT, f"{group} {name}")
            checked[group] = checked[group] + case[f"l2__{name}"]
            if stage == last:
                close_relative(mean_square(pooled(feat), pooled(feat_teacher)), case[f"l2pooled__{name}"], EXACT, name)
                checked[group] = checked[group] + case[f"l2pooled__{name}"]
    for group, expected in checked.items():
        close_relative(groups[group], expected, EXACT, group)
    close_relative(groups["kd"], case[f"kl__{entry['paths'][1]}"], EXACT, "kd")
    close_relative(groups["mixed"], sum(case[f"kl__{path}"] for path in mixed), EXACT, "mixed")
    close_relative(losses["ce"], case["ce"].mean(), EXACT, "ce")
    close_relative(sum(losses.values()), case["total_loss"], EXACT, "total")


@pytest.mark.parametrize("file", CASES)
def test_gradients_and_running_statistics_match_the_reference(file, monkeypatch):
    entry, case, distiller, _, losses, _, _ = run(file, monkeypatch)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())
    bridges = {f"{stage}.0.1": module for stage, module in enumerate(distiller.bridges, start=1)}
    bridges |= {f"{stage}.1.0": module for stage, module in enumerate(distiller.bridges_back, start=1)}
    parameters = {
        "student": dict(distiller.student.named_parameters()),
        "bridges": {f"{name}.{key}": p for name, module in bridges.items() for key, p in module.named_parameters()},
    }
    for group, named in parameters.items():
        trained = {key: parameter.grad for key, parameter in named.items() if parameter.grad is not None}
        assert trained.keys() == set(entry[f"gradstat_{group}_params"])  # bridges that were not drawn are left out
        expected = case[f"gradstat_{group}"]
        rows = [trained[key].flatten() for key in entry[f"gradstat_{group}_params"]]
        found = torch.stack([torch.stack([row.norm(), row.sum(), *row[:4]]) for row in rows])
        error = (found - torch.as_tensor(expected)).abs().max()
        assert error <= STATISTICS * np.abs(expected[:, 0]).max(), group
    for role, network in (("teacher", distiller.teacher), ("student", distiller.student)):
        sums = [norm.running_mean.sum() for norm in norms(network)]
        close_relative(torch.stack(sums), case[f"{role}_running_mean_sums_after"], EXACT, role)
        assert [norm.num_batches_tracked.item() for norm in norms(network)] == list(case[f"{role}_bn_batches_after"])


@pytest.mark.parametrize("file", CASES)
def test_the_total_in_single_precision(file, monkeypatch):
    _, case, _, _, losses, _, _ = run(file, monkeypatch, torch.float32)
    close_relative(sum(losses.values()), case["total_loss_f32"], TOTAL_F32, "total")


def test_loss_by_hand():
    """One sample; two stages of one channel, of 1x2 and 1x1 cells; two classes."""
    feats_teacher = [torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[-1.0]]]], requires_grad=True)]
    feats_bridged = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0]]]])]
    feats_mixed = [[torch.tensor([[[[-3.0]]]])]]  # as negative as the teacher's: pooled after ReLU, they are equal
    logits = torch.zeros(1, 2)
    undecided = torch.tensor([[1e4, 0.0]], requires_grad=True)
    losses = fcfd_loss(logits, logits, feats_bridged, feats_teacher, feats_mixed, [logits, logits + 3.0], 2.0)
    torch.testing.assert_close(losses["appearance"], torch.tensor([0.5 + 9.0 + 4.0]))
    torch.testing.assert_close(losses["functional"], torch.tensor([4.0]))
    assert losses["kd"].item() == losses["mixed"].item() == 0.0
    losses = fcfd_loss(logits, undecided, feats_bridged, feats_teacher, [], [logits, logits], 2.0)
    torch.testing.assert_close(losses["kd"], 4 * torch.tensor([2.0]).log())  # temperature**2 * log 2
    torch.testing.assert_close(losses["mixed"], 2 * losses["kd"])
    assert losses["functional"].tolist() == [0.0]
    assert not any(loss.requires_grad for loss in losses.values())  # none for the teacher


@pytest.mark.parametrize(
    "source, target, kind, kernel, bias",
    [
        ((1, 3, 8, 8), (1, 5, 8, 8), nn.Conv2d, 3, False),
        ((1, 3, 8, 8), (1, 5, 4, 4), nn.Conv2d, 3, True),
        ((1, 3, 4, 4), (1, 5, 8, 8), nn.ConvTranspose2d, 4, True),
    ],
)
@pytest.mark.parametrize("activate", [False, True])
def test_bridges_have_the_reference_modules(source, target, kind, kernel, bias, activate):
    module = bridge(source, target, activate)
    conv = module[0]
    assert type(conv) is kind and conv.kernel_size == (kernel, kernel) and (conv.bias is not None) == bias
    assert module(torch.randn(2, *source[1:])).shape == (2, *target[1:])
    assert [layer.negative_slope for layer in module[2:]] == ([0.1] if activate else [])


def test_bridges_into_a_network_are_activated_where_its_stages_end_in_a_relu():
    distiller = tiny_distiller("FCFD", student="wrn_16_1", teacher="resnet8")
    assert [len(module) for module in distiller.bridges] == [3, 3, 3]
    assert [len(module) for module in distiller.bridges_back] == [2, 2]


def test_draws_are_distinct_uniform_and_follow_torchs_cpu_generator():
    distiller = tiny_distiller("FCFD")
    assert distiller.paths == [("s2t", 1), ("s2t", 2), ("t2s", 1), ("t2s", 2)]
    torch.manual_seed(3)
    draws = [frozenset(distiller.draw_paths()) for _ in range(600)]
    assert len(set(draws)) == 6 and all(len(draw) == 2 for draw in draws)
    assert all(60 < draws.count(draw) < 140 for draw in set(draws))
    torch.manual_seed(3)
    assert draws[:20] == [frozenset(distiller.draw_paths()) for _ in range(20)]


@pytest.mark.parametrize(
    "kind, count, functional, mixed", [("s2t", 2, True, True), ("t2s", 2, False, True), ("nomix", 0, False, False)]
)
def test_extra_type_chooses_the_directions_of_paths(kind, count, functional, mixed):
    distiller = tiny_distiller("FCFD", "FCFD.EXTRA_TYPE", kind, "FCFD.EXTRA_PATHS", count)
    losses = distiller(**tiny_batch())[1]
    assert (losses["functional"] > 0) == functional and (losses["mixed"] > 0) == mixed
    assert losses["appearance"] > 0 and losses["kd"] > 0


@pytest.mark.parametrize("epoch, factor", [(1, 0.05), (20, 1.0), (240, 1.0)])
def test_only_the_feature_losses_warm_up(epoch, factor):
    def losses_at(epoch):
        torch.manual_seed(0)
        return tiny_distiller("FCFD", "FCFD.EXTRA_TYPE", "s2t")(**tiny_batch() | {"epoch": epoch})[1]

    full, found = losses_at(20), losses_at(epoch)
    for name, loss in full.items():
        torch.testing.assert_close(found[name], loss * (factor if name in ("appearance", "functional") else 1.0))


def test_running_statistics_are_not_updated_inside_and_again_after_an_exception():
    norm, x = nn.BatchNorm2d(2), torch.randn(4, 2, 3, 3)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with pytest.raises(KeyError), still_statistics(norm):
        torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
        raise KeyError
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm(x)
    assert norm.num_batches_tracked == 1
    norm.eval()
    with still_statistics(norm):
        torch.testing.assert_close(norm(x), F.batch_norm(x, norm.running_mean, norm.running_var))


def test_teacher_mode_eval_leaves_the_teacher_as_it_was_loaded():
    distiller = tiny_distiller("FCFD", "FCFD.TEACHER_MODE", "eval")
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    losses = distiller(**tiny_batch())[1]
    assert all(torch.isfinite(loss) for loss in losses.values()) and not distiller.teacher.training
    assert all(torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items())


def test_mixed_paths_run_in_the_precision_of_the_pure_ones(monkeypatch):
    distiller, run_stages, dtypes = tiny_distiller("FCFD"), fcfd._run, []

    def recorded(*args):
        output = run_stages(*args)
        dtypes.append(output.logits.dtype)
        return output

    monkeypatch.setattr(fcfd, "_run", recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distiller(**tiny_batch())[1]
    assert dtypes == [torch.bfloat16] * 4
    assert all(loss.dtype == torch.float32 for loss in losses.values())


class Uncut(Fixed):
    """A network of a user."""


@pytest.mark.parametrize(
    "student, teacher, problem",
    [
        ("resnet8", "vgg8", "needs as many stages"),
        (Uncut(torch.zeros(4, 10)), "resnet8", r"the student \(Uncut\) has no stage_kind, stages\(\) and head\(\)"),
        ("resnet8", Uncut(torch.zeros(4, 10)), r"the teacher \(Uncut\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_line(student, teacher, problem):
    networks = (build_model(net, 10) if isinstance(net, str) else net for net in (student, teacher))
    with pytest.raises(UserError, match=f"FCFD.*{problem}") as error:
        distiller_of("FCFD", *networks)
    assert "\n" not in str(error.value)


def test_maps_of_other_ratios_are_refused():
    networks = build_model("ShuffleV2", 10), build_model("resnet8", 10)
    with pytest.raises(UserError, match="FCFD.*a factor of two apart"):
        distiller_of("FCFD", *networks, data_info={"image_size": 28})


@pytest.mark.parametrize(
    "opts, problem",
    [
        (["FCFD.EXTRA_TYPE", "both"], "FCFD.EXTRA_TYPE: expected one of bi, s2t, t2s, nomix; found 'both'"),
        (["FCFD.TEACHER_MODE", "test"], "FCFD.TEACHER_MODE: expected one of train, eval; found 'test'"),
        (["FCFD.EXTRA_PATHS", -1], "FCFD.EXTRA_PATHS: expected a number at least 0 and at most 64; found -1"),
        (["FCFD.EXTRA_TYPE", "nomix"], "FCFD.EXTRA_PATHS: expected 0 with EXTRA_TYPE nomix; found 2"),
    ],
)
def test_settings_are_checked_when_the_config_is_read(opts, problem):
    with pytest.raises(UserError, match=problem):
        load_cfg(None, ["DISTILLER.TYPE", "FCFD", *opts])


def test_more_paths_than_there_are_is_an_error():
    with pytest.raises(UserError, match="FCFD.EXTRA_PATHS: expected at most 2, the mixed paths of type s2t"):
        tiny_distiller("FCFD", "FCFD.EXTRA_TYPE", "s2t", "FCFD.EXTRA_PATHS", 3)


def test_a_state_with_the_former_names_of_the_bridges_loads():
    saved, loaded = tiny_distiller("FCFD"), tiny_distiller("FCFD")
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1.0)
    state = {key.replace("bridges_back", "to_student").replace("bridges", "to_teacher"): value
             for key, value in saved.state_dict().items()}
    assert {"to_teacher.0.0.weight", "to_student.0.0.weight"} <= state.keys()
    loaded.load_state_dict(state)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())
    assert [name for name, _ in loaded.named_children()] == ["student", "bridges", "bridges_back"]  # as the optimiser


def test_fcfd_declares_train_mode_teacher_and_varying_modules():
    assert FCFD.varying_modules and FCFD.teacher_mode == "train" and FCFD.inputs == "features"
