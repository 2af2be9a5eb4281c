"""Maps of unequal sizes."""

import torch

from mdistiller.losses import at_loss, nst_loss, pool_to_smaller


def test_the_larger_of_two_maps_that_are_not_square_is_pooled_to_the_size_of_the_smaller():
    """Means of the 2x2 cells of 0, ..., 7 in rows of four are 2.5 and 4.5; both pairs have the same two values."""
    large = torch.arange(8, dtype=torch.float64).reshape(1, 1, 2, 4)
    small = torch.tensor([[[[2.5, 4.5]]]], dtype=torch.float64)
    wide = torch.tensor([[[[2.0, 3.0, 4.0, 5.0]]]], dtype=torch.float64)  # as high as the small one, and wider
    for pair in ((large, small), (small, large), (wide, small), (small, wide)):
        assert all(torch.equal(feat, small) for feat in pool_to_smaller(*pair))
    zero = torch.zeros(1, dtype=torch.float64)
    for loss in (at_loss, nst_loss):
        torch.testing.assert_close(loss([large, wide], [small, small]), zero)
