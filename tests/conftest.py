"""One thread per test process, so that numbers do not depend on the machine and processes do not compete for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import signal

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts background commands so; sweeps keep it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_log_of_earlier_tests():
    """A run within a test logs to the stdout of that test, which is closed when later tests log."""
    yield
    logger = logging.getLogger("mdistiller")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True  # a run stops it, and the caplog of older pytest listens at the root alone
