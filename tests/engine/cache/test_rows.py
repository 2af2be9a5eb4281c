"""The K largest logits and the rest, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from mdistiller.engine.cache.logit_store import LogitStore
from mdistiller.engine.cache.rows import Rows
from mdistiller.errors import UserError
from mdistiller.functional import entropy, softened_kl


def test_the_rest_of_the_probability_is_spread_evenly_over_the_other_classes():
    # of 16 sixteenths, 8 and 4 are kept; the other 4 are one for each of four classes
    logits = torch.tensor([[2.0, 8.0, 1.0, 4.0, 0.5, 0.5]]).log()
    rows = Rows(6, torch.float32, topk=2)
    packed = rows.pack(logits)
    assert packed.shape == (1, rows.width) == (1, 5)
    assert rows.classes(packed).tolist() == [[1, 3]]
    torch.testing.assert_close(packed[:, :3], torch.tensor([[8.0, 4.0, 1.0]]).log())
    restored = rows.unpack(packed)
    torch.testing.assert_close(restored, torch.tensor([[1.0, 8.0, 1.0, 4.0, 1.0, 1.0]]).log())
    # KL: 2/16 log 2 for the class that loses half, 2 * 0.5/16 log 0.5 for the two that gain as much
    torch.testing.assert_close(softened_kl(restored, logits, 1.0), torch.tensor([math.log(2) / 16]))
    # entropy of (8, 4, 1, 1, 1, 1) / 16 in bits: 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    torch.testing.assert_close(entropy(restored), torch.tensor([2 * math.log(2)]))


@pytest.mark.parametrize("dtype, num_classes", [("float16", 1 << 16), ("float32", 70000)])
def test_class_numbers_are_stored_exactly_even_if_their_bits_are_nan(tmp_path, dtype, num_classes):
    """31745 is a NaN as float16, 31744 infinity, 65535 another NaN."""
    tops = [0, 1, 31743, 31744, 31745, 32767, 32768, 64513, 65535]
    logits = torch.zeros(len(tops), num_classes)
    logits[torch.arange(len(tops)), tops] = 7.0
    rows = Rows(num_classes, getattr(torch, dtype), topk=1)
    metadata = {"num_entries": 9, "num_records": 9, "num_classes": rows.width, "dtype": dtype, "key": {}}
    store = LogitStore(tmp_path, metadata)
    store.write(np.arange(9), rows.pack(logits).numpy())
    values, found = LogitStore(tmp_path, metadata).read(np.arange(9))
    assert found.all()
    assert torch.equal(rows.unpack(torch.from_numpy(values)), logits)


def test_more_classes_than_pay_are_refused():
    Rows(100, torch.float16, topk=49).check()
    with pytest.raises(UserError, match="TEACHER_CACHE.TOPK: expected 0 .* or at most 49 of the 100 classes.*found 50"):
        Rows(100, torch.float16, topk=50).check()
    with pytest.raises(UserError, match="TEACHER_CACHE.DTYPE: .* 65536 classes, the data have 65537; use float32"):
        Rows(65537, torch.float16, topk=50).check()
