"""One thread per test process, so that numbers do not depend on the machine and processes do not compete for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
