"""Knowledge distillation (Hinton et al., 2015): the loss."""

from torch import Tensor

from mdistiller.functional import in_full_precision, softened_kl


@in_full_precision
def kd_loss(logits_student: Tensor, logits_teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """KL divergence from teacher to student at a temperature (Hinton et al., arXiv:1503.02531).

    (B, C), (B, C) -> (B,), in nats, times temperature**2 so that the size of the gradient does not depend on the
    temperature (a number, or a tensor that broadcasts with (B, 1)). All inputs that require a gradient get one.
    """
    divergence = softened_kl(logits_student, logits_teacher, temperature)
    return (temperature.flatten() if isinstance(temperature, Tensor) else float(temperature)) ** 2 * divergence
