"""Multi-level logit distillation (Jin, Wang, Lin, CVPR 2023): the loss."""

from collections import Counter

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision, kl_divergence
from mdistiller.functional import standardize as standardized

COMMON = (3.0, 5.0)  # temperatures of both views, in addition to the configured one
WEAK_ONLY = (2.0, 6.0)  # meant for both views, but the released code computes both terms from the weak view's logits
MASKINGS = ("released", "per_sample")


@in_full_precision
def mld_losses(
    student_weak: Tensor,
    student_strong: Tensor,
    teacher_weak: Tensor,
    teacher_strong: Tensor,
    temperature: float,
    standardize: bool = False,
    masking: str = "released",
) -> dict[str, Tensor]:
    """Instance, class and batch terms of two views as released (Jin et al., CVPR 2023), without weights of the config.

    All logits are (B, C). With k_T the KL divergence times T**2, in nats, and P = softmax(z / T), it returns
      weak (B,)    m * sum of k_T over T in (temperature, 3, 5, 2, 6), plus k_2 + k_6 without a mask; weak view
      strong (B,)  sum of k_T over T in (temperature, 3, 5); strong view
      cc ()        c * sum over the five T of |P_t' P_t - P_s' P_s|^2 / C; weak view
      bc ()        m * sum over the five T of |P_t P_t' - P_s P_s'|^2 / B; weak view
    The teachers' logits get no gradient. `standardize` (logit standardization) applies to the k_T only.

    With `masking` "released", m and c are the means of the two `confidence_masks`, about 1/2, because the published
    code multiplies the masks by losses that are already averaged. With "per_sample" they are the masks themselves, as
    in code that the authors left commented out: m_i multiplies the k_T of sample i and its row of the batch matrix, c_k
    multiplies the row of class k of the class matrix, and the means remain over all B samples or C classes. Raises
    ValueError for another value of `masking`.
    """
    if masking not in MASKINGS:
        raise ValueError(f"unknown masking {masking!r}: expected one of {', '.join(MASKINGS)}")
    teacher_weak, teacher_strong = teacher_weak.detach(), teacher_strong.detach()
    of_sample, of_class = (mask.to(teacher_weak.dtype) for mask in confidence_masks(teacher_weak))
    if masking == "released":
        of_sample, of_class = of_sample.mean(), of_class.mean()
    counts = Counter((float(temperature), *COMMON, *WEAK_ONLY))  # a temperature that occurs twice counts twice
    log_p_student, log_p_teacher = _log_p(student_weak, counts), _log_p(teacher_weak, counts)
    p_student, p_teacher = log_p_student.exp(), log_p_teacher.exp()
    classes = (p_teacher.mT @ p_teacher - p_student.mT @ p_student).square().sum(dim=2)  # (temperatures, C)
    samples = (p_teacher @ p_teacher.mT - p_student @ p_student.mT).square().sum(dim=2)  # (temperatures, B)
    if standardize:
        log_p_student, log_p_teacher = (_log_p(standardized(z), counts) for z in (student_weak, teacher_weak))
        student_strong, teacher_strong = standardized(student_strong), standardized(teacher_strong)
    weak = _divergences(log_p_student, log_p_teacher, counts)
    strong_counts = Counter((float(temperature), *COMMON))
    strong = _divergences(_log_p(student_strong, strong_counts), _log_p(teacher_strong, strong_counts), strong_counts)
    return {
        "weak": of_sample * _total(weak.values(), counts) + sum(weak[t] for t in WEAK_ONLY),
        "strong": _total(strong.values(), strong_counts),
        "cc": (of_class * _total(classes, counts)).mean(),
        "bc": (of_sample * _total(samples, counts)).mean(),
    }


@torch.no_grad()
@in_full_precision
def confidence_masks(logits_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean masks of teacher confidence at or below the median, for samples (B,) and for classes (C,).

    The confidence of a sample is its largest probability, that of a class its sum of probabilities over the batch. The
    median of an even number of values is the mean of the middle two. Does not wait for the device.
    """
    p = logits_teacher.softmax(dim=1)
    return tuple(values <= _median(values) for values in (p.amax(dim=1), p.sum(dim=0)))


def _median(values):
    ordered, count = values.sort().values, len(values)
    if not count:
        return values.sum()  # of an empty batch, nothing is masked
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2  # torch.median would take the lower one


def _log_p(logits, temperatures):
    """Log-probabilities (temperatures, B, C) at each of several temperatures."""
    return torch.stack([logits / temperature for temperature in temperatures]).log_softmax(dim=2)


def _divergences(log_p_student, log_p_teacher, temperatures):
    """{T: T**2 * KL divergence (B,)} for each temperature T."""
    kl = kl_divergence(log_p_student, log_p_teacher)
    return {temperature: temperature**2 * row for temperature, row in zip(temperatures, kl, strict=True)}


def _total(rows, counts):
    return sum(count * row for row, count in zip(rows, counts.values(), strict=True))
