"""Divergences between the softened outputs of teacher and student, as they are used to distil language models.

All functions take logits (n, C) of student and teacher and return (n,), in nats. They are not multiplied by the square
of the temperature, unlike `kd_loss`, which is temperature**2 times `forward_kl`. In the formulas p is the teacher and q
the student, both at the temperature. Mixtures of probabilities are computed from log-probabilities, so that logits
that differ by hundreds of nats give finite values. A logit of -inf is a probability of 0, and 0 log 0 is 0. If p of a
class is 0 and q is not, `reverse_kl` is infinite; if q is 0 and p is not, `forward_kl` is; `adaptive_kl` is infinite if
one of these two is and has a weight above 0. The others are finite in both cases, for shares between 0 and 1.
"""

import math

import torch
from torch import Tensor

from mdistiller.functional import in_full_precision, kl_divergence, log_softened


def _log_probabilities(logits_student, logits_teacher, temperature):
    """(log q, log p), (n, C) each."""
    return (log_softened(logits, temperature) for logits in (logits_student, logits_teacher))


def _log_mixture(log_a, log_b, share):
    """log(share a + (1 - share) b) from log a and log b; exactly log a for a share of 1, and log b for a share of 0."""
    if share in (0, 1):
        return log_a if share else log_b
    absent = log_a.isneginf() & log_b.isneginf()  # the gradient of logaddexp would be NaN
    mixture = torch.logaddexp(log_a.masked_fill(absent, 0.0) + math.log(share), log_b + math.log1p(-share))
    return mixture.masked_fill(absent, -math.inf)


def _kl(log_from, log_to):
    """KL(a, b) = sum a (log a - log b) from log a and log b, each (n, C), with gradient for both: (n,)."""
    return kl_divergence(log_to, log_from)


@in_full_precision
def forward_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p, q) = sum p (log p - log q), from teacher to student: (n, C), (n, C) -> (n,), in nats.

    The loss of Hinton et al. (arXiv:1503.02531) without the factor temperature**2 of `kd_loss`.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_p, log_q)


@in_full_precision
def reverse_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q, p) = sum q (log q - log p), from student to teacher: (n, C), (n, C) -> (n,), in nats.

    The divergence of MiniLLM (Gu et al., arXiv:2306.08543), here for the tokens of given answers, not of sampled ones.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_q, log_p)


@in_full_precision
def generalized_js(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q: (n, C), (n, C) -> (n,), in nats.

    Generalized Jensen-Shannon divergence (Agarwal et al., arXiv:2306.13649); at most log 2 for beta 0.5. It is 0 for
    beta 0 and 1. As beta tends to 0, the result divided by beta tends to `forward_kl`; as beta tends to 1, the result
    divided by 1 - beta tends to `reverse_kl`.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


@in_full_precision
def skewed_forward_kl(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, lam: float = 0.1
) -> Tensor:
    """KL(p, m), m = lam p + (1 - lam) q: (n, C), (n, C) -> (n,), in nats; at most -log lam.

    DistiLLM (Ko et al., ICML 2024, arXiv:2402.03898). The released code takes the logarithm of a mixture of
    probabilities, which gives NaN if both underflow; this function stays finite.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_p, _log_mixture(log_p, log_q, lam))


@in_full_precision
def skewed_reverse_kl(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, lam: float = 0.1
) -> Tensor:
    """KL(q, m), m = (1 - lam) p + lam q: (n, C), (n, C) -> (n,), in nats; at most -log lam. See `skewed_forward_kl`."""
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_q, _log_mixture(log_q, log_p, lam))


@in_full_precision
def adaptive_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, alpha: float = 0.5) -> Tensor:
    """Mean of forward and reverse KL, weighted by where p and q differ: (n, C), (n, C) -> (n,), in nats.

    AKL (Wu et al., COLING 2025, arXiv:2404.02657). The tail consists of the classes with the smallest p, as many as
    have a sum of p of at most `alpha`; the head consists of the others. With head and tail also naming the sums of
    |p - q| over these classes, the weight of forward KL is head / (head + tail) and that of reverse KL is
    tail / (head + tail), both without gradient. The result is exactly 0 for equal logits, for which the released code
    divides 0 by 0.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    most = alpha if alpha < 1 else math.inf  # the sum of all probabilities is rounded, often to more than 1
    with torch.no_grad():
        p, difference = log_p.exp(), (log_p.exp() - log_q.exp()).abs()
        ascending, order = p.sort(dim=-1, stable=True)
        in_tail = torch.zeros_like(p).scatter(-1, order, (ascending.cumsum(-1) <= most).to(p.dtype))
        tail, total = (difference * in_tail).sum(-1), difference.sum(-1)
        tail = tail / total.clamp_min(torch.finfo(p.dtype).tiny)
    weighted = ((1 - tail, _kl(log_p, log_q)), (tail, _kl(log_q, log_p)))
    # 0 times infinity would be NaN; a weight of NaN, from logits that are not finite, stays one
    return sum(torch.where(weight == 0, 0.0, weight * kl) for weight, kl in weighted)
