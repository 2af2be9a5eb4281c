"""Switches of docs/fidelity.md that no golden covers."""

import math

import pytest
import torch

from mdistiller.distillers.ea import ea_weight
from mdistiller.distillers.ls import standardize
from mdistiller.library import distill
from mdistiller.models import build_model
from tests.distillers.support import distiller_of, tiny_batch, tiny_distiller

LOGITS = 4 * torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
CONFIGURED = 2.0  # T' in the config
BOUND_1000, BOUND_100 = math.log(1000), math.log(100)


@pytest.mark.parametrize("name, opts, data, temperature, bound, standardized", [
    ("EA-KD", [], "cifar100", CONFIGURED, 100, False),
    ("EA-KD", [], "imagenet", CONFIGURED, BOUND_1000, False),
    ("EA-KD", ["DISTILLER.LS", True], "cifar100", CONFIGURED, 100, False),
    ("EA-DKD", [], "cifar100", 3.0, 100, False),
    ("EA-DKD", [], "imagenet", 3.0, BOUND_1000, False),
    ("EA-DKD", ["DISTILLER.LS", True], "imagenet", 3.0, BOUND_1000, True),
    ("EA-MLD", [], "imagenet", 3.0, BOUND_100, False),
    ("EA-MLD", ["DISTILLER.LS", True], "cifar100", 3.0, BOUND_100, False),
    ("EA-REVIEWKD", [], "tiny_imagenet", CONFIGURED, BOUND_100, False),
])
def test_the_weights_of_the_release_and_of_the_paper(name, opts, data, temperature, bound, standardized):
    def weight(compat):
        networks = build_model("resnet8", 10), build_model("resnet8", 10)
        opts_ = ["EA.TEMPERATURE", CONFIGURED, "EA.COMPAT", compat, *opts]
        return distiller_of(name, *networks, *opts_, data_info={"name": data}).sample_weight(*LOGITS)

    seen = standardize(LOGITS.flatten(0, 1)).view_as(LOGITS) if standardized else LOGITS
    torch.testing.assert_close(weight("release"), ea_weight(*seen, temperature, upper_bound=bound))
    torch.testing.assert_close(weight("paper"), ea_weight(*LOGITS, CONFIGURED, upper_bound=math.log(10)))


@pytest.mark.parametrize("bound", [("EA.UPPER_BOUND", 100), ("EA.COMPAT", "release")])
def test_a_number_and_standardized_logits_are_switches_of_their_own(bound):
    distiller = tiny_distiller("EA-KD", *bound, "EA.LOGITS", "standardized")
    flat = standardize(LOGITS.flatten(0, 1)).view_as(LOGITS)
    torch.testing.assert_close(distiller.sample_weight(*LOGITS), ea_weight(*flat, 3.0, upper_bound=100.0))


@pytest.mark.parametrize("stated, bound", [(None, 100.0), (6.9, 6.9), ("log_c", math.log(10))])
def test_a_stated_bound_wins_over_that_of_the_release(stated, bound):
    distiller = tiny_distiller("EA-KD", "EA.COMPAT", "release", "EA.UPPER_BOUND", stated)
    torch.testing.assert_close(distiller.sample_weight(*LOGITS), ea_weight(*LOGITS, upper_bound=bound))
    kd = distill("resnet8", "resnet8", "EA-KD", num_classes=10, teacher_checkpoint="random", EA_COMPAT="release",
                 EA_UPPER_BOUND=stated)
    torch.testing.assert_close(kd.distiller.sample_weight(*LOGITS), ea_weight(*LOGITS, upper_bound=bound))


@pytest.mark.parametrize("opts, factor", [
    (["DISTILLER.LS", True], 1.0),
    (["DISTILLER.LS", True, "DKD.LS_WEIGHT", 9.0], 9.0),
    (["DISTILLER.LS", True, "DKD.LS_WEIGHT", 9.0, "EA.COMPAT", "release"], 0.9),  # the default of KD.LOSS.KD_WEIGHT
    (["DISTILLER.LS", True, "KD.LOSS.KD_WEIGHT", 2.0, "EA.COMPAT", "release"], 2.0),
    (["DKD.LS_WEIGHT", 9.0, "KD.LOSS.KD_WEIGHT", 2.0, "EA.COMPAT", "release"], 1.0),
])
def test_the_factor_of_dkd_with_logit_standardization(opts, factor):
    distiller = tiny_distiller("DKD", *opts)
    assert (distiller.alpha, distiller.beta) == (factor * 1.0, factor * 8.0)


@pytest.mark.parametrize("name", ["FITNET", "VID", "CRD", "OFD", "SIMKD", "FCFD"])
def test_a_dry_run_updates_no_running_statistic(name):
    torch.manual_seed(0)
    networks = build_model("resnet8", 10), build_model("resnet14", 10).train()
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    info = {"num_classes": 10, "num_train": 40, "image_size": 32, "targets": torch.arange(40) % 10}
    distiller_of(name, *networks, data_info=info).dry_run()
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_variant_of_wttm_multiplies_both_weights():
    plain, variant = tiny_distiller("WTTM"), tiny_distiller("EA-WTTM", "EA.KIND", "constant")
    batch = tiny_batch()
    losses = [distiller(**batch)[1]["kd"] for distiller in (plain, variant)]
    torch.testing.assert_close(losses[1], losses[0] * variant.monitor["weight"][0])
