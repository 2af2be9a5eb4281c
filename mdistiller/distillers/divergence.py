"""Divergences between the softened outputs of teacher and student, as language models are distilled by them.

All are functions of logits (n, C), of student and teacher, and return (n,), in nats, without the square of the
temperature (unlike `kd_loss`, which is temperature**2 times `forward_kl`). p is the teacher, q the student, both at the
temperature. Logits are brought to at least float32 before they are divided by it, since a division in bfloat16 rounds.
Log-probabilities are never taken of mixed probabilities, so that logits hundreds of nats apart give finite values.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Key, temperature_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.functional import kl_divergence


def _log_probabilities(logits_student, logits_teacher, temperature):
    """(log q, log p), (n, C) each, in at least float32."""
    return (
        F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
        for logits in (logits_student, logits_teacher)
    )


def _log_mixture(log_a, log_b, share):
    """log(share a + (1 - share) b) of log-probabilities; exactly the one or the other for a share of 1 or 0."""
    if share in (0, 1):
        return log_a if share else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _kl(log_from, log_to):
    """KL(a, b) = sum a (log a - log b) of log a and log b, (n, C) each, with gradient to both: (n,)."""
    return kl_divergence(log_to, log_from)


def forward_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p, q) = sum p (log p - log q), from teacher to student: (n, C), (n, C) -> (n,), in nats.

    Hinton et al. (arXiv:1503.02531) without temperature squared, which `kd_loss` has.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_p, log_q)


def reverse_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q, p) = sum q (log q - log p), from student to teacher: (n, C), (n, C) -> (n,), in nats.

    The divergence of MiniLLM (Gu et al., arXiv:2306.08543), here of given tokens, not of sampled ones.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_q, log_p)


def generalized_js(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q: (n, C), (n, C) -> (n,), in nats.

    Generalized Jensen-Shannon divergence (Agarwal et al., arXiv:2306.13649); at most log 2 for beta 0.5. It vanishes
    for beta 0 and 1; divided by beta it tends to `forward_kl`, divided by 1 - beta to `reverse_kl`.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def skewed_forward_kl(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, lam: float = 0.1
) -> Tensor:
    """KL(p, m), m = lam p + (1 - lam) q: (n, C), (n, C) -> (n,), in nats; at most -log lam.

    DistiLLM (Ko et al., ICML 2024, arXiv:2402.03898). The released code takes the log of mixed probabilities and gives
    NaN where both underflow; this does not.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_p, _log_mixture(log_p, log_q, lam))


def skewed_reverse_kl(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, lam: float = 0.1
) -> Tensor:
    """KL(q, m), m = (1 - lam) p + lam q: (n, C), (n, C) -> (n,), in nats; at most -log lam. See `skewed_forward_kl`."""
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    return _kl(log_q, _log_mixture(log_q, log_p, lam))


def adaptive_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0, alpha: float = 0.5) -> Tensor:
    """Forward and reverse KL, weighed by where the two differ: (n, C), (n, C) -> (n,), in nats.

    AKL (Wu et al., COLING 2025, arXiv:2404.02657). The tail are the classes in ascending p while their summed p is at
    most `alpha`, the head are the others. Forward KL weighs head / (head + tail), reverse KL the rest, where each is
    the sum of |p - q| over its classes, without gradient. Exactly 0 for equal logits, where the released code divides
    0 by 0.
    """
    log_q, log_p = _log_probabilities(logits_student, logits_teacher, temperature)
    with torch.no_grad():
        p, difference = log_p.exp(), (log_p.exp() - log_q.exp()).abs()
        ascending, order = p.sort(dim=-1, stable=True)
        in_tail = torch.zeros_like(p).scatter(-1, order, (ascending.cumsum(-1) <= alpha).to(p.dtype))
        tail, total = (difference * in_tail).sum(-1), difference.sum(-1)
        tail = tail / total.clamp_min(torch.finfo(p.dtype).tiny)
    return (1 - tail) * _kl(log_p, log_q) + tail * _kl(log_q, log_p)


class Divergence(Distiller):
    """(1 - KD_RATE) cross-entropy + KD_RATE divergence, as in DSKD (Zhang et al., EMNLP 2024, arXiv:2406.17328).

    The temperature softens the divergence alone and its square does not multiply it. Of language models a sample is a
    supervised token; of images, an image.
    """

    defaults = {
        "TEMPERATURE": temperature_key(2.0),
        "KD_RATE": Key(0.5, least=0, most=1, help="Share of the divergence; cross-entropy has the rest."),
    }
    divergence: staticmethod  # a function of this file
    option: str | None = None  # its further argument, a key of the node in capitals

    def build(self, cfg):
        self.temperature, self.kd_rate = cfg.TEMPERATURE, cfg.KD_RATE
        self.ce_weight = 1 - self.kd_rate
        self.options = {self.option: cfg[self.option.upper()]} if self.option else {}

    def sample_losses(self, student, teacher, **batch):
        loss = self.divergence(student.logits, teacher.logits, self.temperature, **self.options)
        return {"kd": self.kd_rate * loss}


@register("SFT")
class SFT(Distiller):
    """Supervised fine-tuning: cross-entropy alone, without a teacher; the row that divergences are measured by."""

    needs_teacher = False


@register("FKL")
class ForwardKL(Divergence):
    __doc__ = f"Forward KL divergence, the KD of language models: {Divergence.__doc__}"
    task_aliases = {"language": "KD"}
    divergence = staticmethod(forward_kl)


@register("RKL")
class ReverseKL(Divergence):
    __doc__ = f"Reverse KL divergence: {Divergence.__doc__}"
    task_aliases = {"language": "RKLD"}
    divergence = staticmethod(reverse_kl)


@register("JSD")
class JensenShannon(Divergence):
    __doc__ = f"Generalized Jensen-Shannon divergence: {Divergence.__doc__}"
    defaults = {
        **Divergence.defaults,
        "BETA": Key(0.5, least=0, most=1, help="Share of the teacher in the mixture; DistiLLM's is 0.1."),
    }
    divergence, option = staticmethod(generalized_js), "beta"


@register("SKL")
class SkewedForwardKL(Divergence):
    __doc__ = f"Skewed forward KL divergence: {Divergence.__doc__}"
    defaults = {
        **Divergence.defaults,
        "LAM": Key(0.1, least=0, most=1, help="Share of the other distribution in the mixture."),
    }
    task_aliases = {"language": "SKLD"}
    divergence, option = staticmethod(skewed_forward_kl), "lam"


@register("SRKL")
class SkewedReverseKL(Divergence):
    __doc__ = f"Skewed reverse KL divergence: {Divergence.__doc__}"
    defaults = {
        **Divergence.defaults,
        "LAM": Key(0.1, least=0, most=1, help="Share of the other distribution in the mixture."),
    }
    task_aliases = {"language": "SRKLD"}
    divergence, option = staticmethod(skewed_reverse_kl), "lam"


@register("AKL")
class AdaptiveKL(Divergence):
    __doc__ = f"Adaptive KL divergence: {Divergence.__doc__}"
    defaults = {
        **Divergence.defaults,
        "ALPHA": Key(0.5, least=0, most=1, help="Probability of the teacher that the tail holds at most."),
    }
    divergence, option = staticmethod(adaptive_kl), "alpha"
