"""Every method on another device than the CPU, which is pretended (see `pretended`): this needs no GPU."""

import json
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from mdistiller.distillers import DISTILLERS
from tests.distillers.pretended import FAULTS
from tests.engine.support import REPOSITORY

pytestmark = pytest.mark.skipif(not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
                                reason="this PyTorch has no devices that are written in Python")


@pytest.fixture(scope="module")
def refused():
    words = [sys.executable, "-m", "tests.distillers.pretended"]
    return json.loads(subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout)


def test_the_device_refuses_what_a_gpu_refuses_or_waits_for(refused):
    words = dict.fromkeys(FAULTS, "waits for the device")
    words |= {"float64": "is in float64", "mixed": "has tensors of two devices"}
    assert [name for name, said in words.items() if said not in refused[name]] == []


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_a_step_with_networks_on_a_device_stays_there_and_never_waits(refused, name):
    """The networks are moved before the distiller is built, as by the users of `distill`."""
    assert refused[name] == ""
