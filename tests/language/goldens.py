"""Numbers of the reference implementations for language models: the arrays of tests/golden/language/golden.npz.

Names are `<case>/<what>`; `@T2` is the temperature of the divergence, `@Tp2` that of the weights.
"""

import numpy as np
import torch

from mdistiller.distillers import divergence as d
from tests.golden_files import GOLDEN

with np.load(GOLDEN / "language" / "golden.npz", allow_pickle=False) as _arrays:
    ARRAYS = {name: _arrays[name] for name in _arrays.files}
CASES = ("small", "same", "peaky")
LOSSES = {  # our function, by the goldens' name
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "js_divergence": d.generalized_js,
    "skewed_forward_kl": d.skewed_forward_kl,
    "skewed_reverse_kl": d.skewed_reverse_kl,
    "adaptive_kl": d.adaptive_kl,
}


class Case:
    """One case: its logits at supervised tokens, in a dtype, and what belongs to them."""

    def __init__(self, name, dtype=torch.float64):
        self.name = name
        labels = torch.from_numpy(ARRAYS[f"{name}/labels"])
        self.supervised = labels >= 0
        self.attended = torch.from_numpy(ARRAYS[f"{name}/attention"]) > 0
        self.target = labels[self.supervised]
        self.group = self.supervised.nonzero()[:, 0]
        self.student, self.teacher = (
            torch.from_numpy(ARRAYS[f"{name}/{role}"]).to(dtype)[self.supervised] for role in ("student", "teacher")
        )

    def value(self, key):
        """The golden of a key: at supervised positions where it is one number a position, else as it is."""
        value = torch.from_numpy(np.asarray(ARRAYS[f"{self.name}/{key}"]))
        return value[self.supervised] if value.shape[:2] == self.supervised.shape else value

    def has(self, key):
        return f"{self.name}/{key}" in ARRAYS
