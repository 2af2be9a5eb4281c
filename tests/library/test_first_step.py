"""What watches the first update in a loop of one's own."""

import gc
import logging

import pytest
import torch

from mdistiller.library import distill
from tests.library.test_distill import IMAGES, LABELS, own_pair


def test_the_first_update_must_reach_the_modules_of_the_method(caplog):
    caplog.set_level(logging.WARNING, "mdistiller")
    for forgetful in (True, False):
        kd = distill(*own_pair(), "VID")
        optimizer = torch.optim.SGD(kd.student.parameters() if forgetful else kd.learnable_parameters(), 0.1)
        caplog.clear()
        for _ in range(2):
            kd(IMAGES, LABELS).loss.backward()
            assert not [record for record in caplog.records if "optimiser" in record.message]
        optimizer.step()
        kd(IMAGES, LABELS)
        told = [record.message for record in caplog.records if "optimiser" in record.message]
        assert len(told) == forgetful and all("not regressors.0.0.weight of VID" in line for line in told)
        assert not kd.checked  # no hook is left


@pytest.mark.parametrize("end", ["kd is dropped", "kd.checked = False"])
def test_what_watches_the_first_update_goes_with_kd_and_with_its_checks(end):
    """A student that is distilled again and again, or only weighed, has no more hooks each time."""
    student, teacher = own_pair()
    kd = distill(student, teacher, "EA-KD")
    kd(IMAGES, LABELS).loss.backward()
    assert student.fc.weight._post_accumulate_grad_hooks
    if end == "kd is dropped":
        del kd
        gc.collect()
    else:
        kd.checked = False
    assert not student.fc.weight._post_accumulate_grad_hooks
