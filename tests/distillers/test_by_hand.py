"""Distillers built by hand: networks that know nothing of this project."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.errors import UserError
from mdistiller.models import AtInputSize, Output, build_model
from mdistiller.tasks.classification import evaluate
from tests.distillers.support import distiller_of

SHAPES = (8, 16), (16, 8), (32, 4), (64, 2)  # channels and size of each map
PAIR = lambda logits, features: (logits, features)  # noqa: E731
INFO = {"num_classes": 10, "num_train": 40}


class Stub(nn.Module):
    """A network without parameters; `give` makes its output of the logits and the features."""

    def __init__(self, seed, give):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(4, *shape, generator=generator)  # noqa: E731
        maps = [draw(channels, size, size) for channels, size in SHAPES]
        self.logits = draw(10).requires_grad_()
        self.features = {"feats": maps, "preact_feats": maps, "pooled_feat": draw(64)}
        self.give = give

    def forward(self, image):
        return self.give(self.logits, self.features)


def losses_of(name, give):
    distiller = distiller_of(name, Stub(0, give), Stub(1, give), data_info=INFO)
    torch.manual_seed(0)
    batch = {"target": torch.arange(4), "index": torch.arange(4), "contrast_index": torch.arange(20).view(4, 5) % 40}
    return distiller(image=torch.zeros(4, 3, 16, 16), image_strong=torch.zeros(4, 3, 16, 16), **batch)[1]


@pytest.mark.parametrize("name", ["NONE", "EA-DKD", "CTKD", "MLD", "FITNET", "AT", "NST", "SP", "VID", "REVIEWKD",
                                  "PAD", "KDSVD", "RKD"])
def test_a_pair_and_an_object_with_logits_count_like_the_output_of_our_networks(name):
    torch.manual_seed(0)
    expected = losses_of(name, Output)
    torch.manual_seed(0)
    assert losses_of(name, PAIR) == expected
    torch.manual_seed(0)
    assert losses_of(name, lambda logits, features: SimpleNamespace(logits=logits, features=features)) == expected


@pytest.mark.parametrize("give", [
    Output, PAIR, lambda logits, features: logits,
    lambda logits, features: SimpleNamespace(logits=logits),
], ids=["output", "pair", "tensor", "object"])
def test_logits_are_found_in_training_in_eval_mode_and_in_the_evaluation(give):
    student = Stub(0, give)
    distiller = distiller_of("EA-KD", student, Stub(1, give))
    images, target = torch.zeros(4, 3, 8, 8), student.logits.argmax(dim=1)
    target[0] = (target[0] + 1) % 10
    logits, losses = distiller(images, target)
    torch.testing.assert_close(losses["ce"], 0.1 * nn.functional.cross_entropy(student.logits, target))
    assert logits is student.logits and losses["kd"] > 0
    assert distiller.eval()(images) is student.logits
    assert evaluate(student, [{"image": images, "target": target}])["top1"] == 75.0


def test_another_output_is_refused_in_training_and_in_eval_mode():
    student = Stub(0, lambda logits, features: (logits, logits, features))
    distiller: Distiller = distiller_of("NONE", student, None)
    for mode in (True, False):
        with pytest.raises(UserError, match=r"Stub returns tuple; expected logits \(B, C\), or a pair"):
            distiller.train(mode)(torch.zeros(4, 3, 8, 8), torch.arange(4))


def test_errors_name_networks_by_their_class_where_the_config_does_not_name_them():
    student, teacher = Stub(0, lambda logits, features: logits), Stub(1, PAIR)
    wrapped = AtInputSize(student, 8, ((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, 1)))
    for network, opts, names in ((wrapped, (), ("Stub", "Stub")),
                                 (student, ("DISTILLER.TEACHER", "resnet14"), ("Stub", "resnet14"))):
        with pytest.raises(UserError, match=f"maps of student {names[0]} none; of teacher {names[1]} 8x16x16, 16x"):
            distiller_of("FITNET", network, teacher, *opts)
    with pytest.raises(UserError, match="WKD: teacher Stub does not end in a linear layer of 10 classes"):
        distiller_of("WKD", student, teacher)


def test_wkd_takes_the_number_of_classes_from_the_teacher_where_the_data_do_not_tell_it():
    assert distiller_of("WKD", build_model("resnet8", 10), build_model("resnet8", 10)).cost.shape == (10, 10)
