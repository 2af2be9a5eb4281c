"""Memory, threads and devices of a run."""

import platform
import subprocess
import sys

import pytest
import torch

from mdistiller.engine.device import out_of_memory_fails_the_run
from mdistiller.errors import RunError
from mdistiller.tasks.classification import Classification
from tests.engine.support import REPOSITORY, run

COUNT = """
import resource
import torch
from mdistiller.engine.device import keep_freed_memory

def pages_cleared(times=10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(40_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_itself = pages_cleared()
assert keep_freed_memory()
pages_cleared()
print(by_itself, pages_cleared())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are not told what to do")
def test_freed_memory_is_used_again():
    """Minor page faults while a large tensor is made and freed ten times, before and after."""
    counted = subprocess.run([sys.executable, "-c", COUNT], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    by_itself, kept = map(int, counted.stdout.split())
    assert kept < 0.01 * by_itself


def test_a_run_without_enough_memory_fails_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "supervised", lambda *outputs: {"ce": torch.empty(2**50)})
    with pytest.raises(RunError, match=r"^out of memory \(.*allocate.*SOLVER.BATCH_SIZE"):
        run(tmp_path, "KD")


@pytest.mark.parametrize("error", [
    MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory.\nMuch more text"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.05 GB, max allowed: 18.13 GB)."),
    RuntimeError("Invalid buffer size: 24.00 GB"), RuntimeError("CUDA error: out of memory\nMuch more text"),
])
def test_errors_that_mean_out_of_memory_are_recognised(error):
    with pytest.raises(RunError, match="^out of memory"), out_of_memory_fails_the_run():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), RunError("no workers (can't allocate memory): fewer")])
def test_other_errors_are_raised_unchanged(error):
    with pytest.raises(type(error)) as raised, out_of_memory_fails_the_run():
        raise error
    assert raised.value is error
