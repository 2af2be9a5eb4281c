"""Logits and features of the reference zoo with known weights: recipes A and B in eval mode, BT in train mode."""

import pytest
import torch

from mdistiller.models import build_model
from tests.golden_files import close_relative, load
from tests.models.support import MANIFEST, filled, norms, recipe_images

TOLERANCE = {"": 1e-5, "_b": 1e-4, "_bt": 1e-3}  # of the manifest, relative to the largest magnitude
CASES = {case["name"]: case for case in MANIFEST["models"]}
every_case = pytest.mark.parametrize("name", CASES)


def golden_model(name, recipe):
    case = CASES[name]
    with torch.device("meta"):  # initial weights would be overwritten
        model = build_model(case["registry_name"], case["num_classes"], family=case["dataset"])
    return filled(model.to_empty(device="cpu"), recipe), load("models", case["file"])


def summary(maps):
    """Mean, population deviation and L2 norm of each map, and its first eight values."""
    wide = [feature.double().flatten() for feature in maps]
    stats = torch.stack([torch.stack((x.mean(), x.std(correction=0), x.norm())) for x in wide])
    return stats, torch.stack([x[:8] for x in wide])


def assert_like_golden(output, golden, suffix):
    tolerance = TOLERANCE[suffix]
    close_relative(output.logits, golden[f"logits{suffix}"], tolerance, "logits")
    groups = {
        "feats": output.features["feats"],
        "preact": output.features.get("preact_feats"),
        "pooled": [output.features["pooled_feat"]],
    }
    for group, maps in groups.items():
        assert (maps is not None) == (f"{group}_stats{suffix}" in golden), f"{group} given here xor there"
        if maps is not None:
            stats, first = summary(maps)
            close_relative(stats, golden[f"{group}_stats{suffix}"], tolerance, f"{group} statistics")
            close_relative(first, golden[f"{group}_first8{suffix}"], tolerance, f"{group} values")


@every_case
@pytest.mark.parametrize("recipe, suffix", [("A", ""), ("B", "_b")])
@torch.no_grad()
def test_in_eval_mode_logits_and_features_are_the_references(name, recipe, suffix):
    model, golden = golden_model(name, recipe)
    output = model.eval()(recipe_images(7, 2, CASES[name]["input_size"]))
    assert_like_golden(output, golden, suffix)


@every_case
@torch.no_grad()
def test_in_train_mode_logits_and_running_means_are_the_references(name):
    model, golden = golden_model(name, "B")
    output = model.train()(recipe_images(8, 4, CASES[name]["input_size"]))
    assert_like_golden(output, golden, "_bt")

    counters = torch.stack([norm.num_batches_tracked for norm in norms(model)])
    assert counters.tolist() == [1] * len(counters)
    once = torch.as_tensor(golden["bn_num_batches_bt"]) == 1  # the reference runs three batch norms of a wrn twice
    assert (~once).sum() == (3 if name.startswith("wrn") else 0)
    means = torch.stack([norm.running_mean.double().sum() for norm in norms(model)])
    close_relative(means[once], golden["bn_running_mean_sum_bt"][once.numpy()], 1e-3, "running means")
