"""Divergences between the softened outputs of teacher and student, as language models are distilled by them."""

from collections.abc import Callable

from mdistiller.config import Key, temperature_key
from mdistiller.distillers.base import Distiller, register
from mdistiller.losses.divergence import (
    adaptive_kl,
    forward_kl,
    generalized_js,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)


class Divergence(Distiller):
    """(1 - KD_RATE) * cross-entropy + KD_RATE * divergence, as in DSKD (Zhang et al., EMNLP 2024, arXiv:2406.17328).

    The temperature applies to the divergence only, which is not multiplied by its square. For language models a sample
    is a supervised token, for images it is an image.
    """

    defaults = {
        "TEMPERATURE": temperature_key(2.0),
        "KD_RATE": Key(0.5, least=0, most=1, help="Weight of the divergence; the cross-entropy has 1 - KD_RATE."),
    }
    search = {"KD_RATE": 10, "TEMPERATURE": 4}
    divergence: staticmethod  # a function of `mdistiller.losses.divergence`
    arguments: tuple = ()  # names of its further arguments; in capitals they are keys of the node

    def build(self, cfg):
        self.temperature, self.kd_rate = cfg.TEMPERATURE, cfg.KD_RATE
        self.ce_weight = 1 - self.kd_rate
        self.options = {name: cfg[name.upper()] for name in self.arguments}

    def sample_losses(self, student, teacher, **batch):
        loss = self.divergence(student.logits, teacher.logits, self.temperature, **self.options)
        return {"kd": self.kd_rate * loss}


@register("SFT")
class SFT(Distiller):
    """Supervised fine-tuning: cross-entropy alone, without a teacher. It is the baseline of the divergences."""

    needs_teacher = False


def _register(name: str, divergence: Callable, summary: str, language_name: str | None = None, **options: Key) -> None:
    """Register a `Divergence` with the further arguments `options`, and its other name for language models."""
    attributes = {
        "__module__": __name__,
        "__doc__": f"{summary}: {Divergence.__doc__}",
        "defaults": Divergence.defaults | {option.upper(): key for option, key in options.items()},
        "task_aliases": {"language": language_name} if language_name else {},
        "divergence": staticmethod(divergence),
        "arguments": tuple(options),
    }
    register(name)(type(name, (Divergence,), attributes))


_register("FKL", forward_kl, "Forward KL divergence, the KD of language models", "KD")
_register("RKL", reverse_kl, "Reverse KL divergence", "RKLD")
_register("JSD", generalized_js, "Generalized Jensen-Shannon divergence", beta=Key(
    0.5, least=0, most=1, help="Share of the teacher in the mixture; DistiLLM's is 0.1."))
_register("SKL", skewed_forward_kl, "Skewed forward KL divergence", "SKLD", lam=Key(
    0.1, least=0, most=1, help="Share of the teacher in the mixture."))
_register("SRKL", skewed_reverse_kl, "Skewed reverse KL divergence", "SRKLD", lam=Key(
    0.1, least=0, most=1, help="Share of the student in the mixture."))
_register("AKL", adaptive_kl, "Adaptive KL divergence", alpha=Key(
    0.5, least=0, most=1, help="Largest sum of the teacher's probabilities in the tail."))
