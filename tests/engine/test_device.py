"""What a run asks of the machine."""

import platform
import subprocess
import sys

import pytest

from tests.engine.support import REPOSITORY

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
