"""FitNets: distillation of one intermediate layer, the hint (Romero et al., 2015); the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision


@in_full_precision
def fitnet_loss(regressed_student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps (Romero et al., arXiv:1412.6550, Eq. 3): 2 x (B, C, H, W) -> (B,).

    The paper has half of the sum; the mean is that of RepDistiller.
    """
    return (regressed_student - teacher).square().flatten(1).mean(dim=1)
