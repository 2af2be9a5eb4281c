"""The form in which a teacher's logits are stored: all C values, or the K largest ones and the mass of all others."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mdistiller.errors import UserError

WORDS = {torch.float16: torch.int16, torch.float32: torch.int32}  # integers of the same size, for class numbers
MOST_CLASSES = {torch.float16: 1 << 16, torch.float32: 1 << 31}  # that such an integer can number


class Rows(NamedTuple):
    """Rows of C = `num_classes` logits in `dtype`; with `topk` K > 0, only the K largest are stored.

    A row of the second form has 2 K + 1 values: the K largest logits, the logit r of the rest, and the K class numbers
    (integers of the size of `dtype`). When it is read, the remaining probability mass, that of all other C - K classes,
    is spread evenly over them: each gets the logit r = log(sum of exp(their logits) / (C - K)). At temperature 1 the
    probabilities of the K classes and the remaining mass are therefore those of the teacher, up to rounding. At a
    higher temperature the rest gets somewhat more mass than the teacher gives it, because the even distribution has the
    largest entropy; standardized logits change with the spread of the rest.
    """

    num_classes: int
    dtype: torch.dtype
    topk: int = 0

    @property
    def width(self) -> int:
        """Number of values of a stored row."""
        return 2 * self.topk + 1 if self.topk else self.num_classes

    @property
    def num_logits(self) -> int:
        """Number of values of a stored row that are logits; they come first."""
        return self.topk + 1 if self.topk else self.num_classes

    def check(self) -> None:
        """Raise UserError when K is too large."""
        most = (self.num_classes - 2) // 2
        if self.topk > most:
            raise UserError(
                f"TEACHER_CACHE.TOPK: expected 0 (all logits) or at most {most} of the {self.num_classes} classes, as "
                f"more take no less space than all logits; found {self.topk}"
            )
        if self.topk and self.num_classes > MOST_CLASSES[self.dtype]:
            raise UserError(f"TEACHER_CACHE.DTYPE: with TOPK, float16 numbers at most {MOST_CLASSES[self.dtype]} "
                            f"classes, the data have {self.num_classes}; use float32")

    def pack(self, logits: Tensor) -> Tensor:
        """Logits (n, C) -> stored rows (n, width) in `dtype`, on the same device."""
        if not self.topk:
            return logits.to(self.dtype)
        classes = logits.topk(self.topk, dim=1).indices
        word = WORDS[self.dtype]
        values = self.at(logits, classes).to(self.dtype)
        # joined as integers: the bits of a class number may be those of a NaN, which arithmetic could change
        return torch.cat([values.view(word), classes.to(word)], dim=1).view(self.dtype)

    def at(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Logits (n, C) at classes (n, K), and the logit of the rest: (n, K + 1), at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        others = logits.scatter(1, classes, -math.inf).logsumexp(dim=1, keepdim=True)
        return torch.cat([logits.gather(1, classes), others - math.log(self.num_classes - self.topk)], dim=1)

    def classes(self, rows: Tensor) -> Tensor:
        """The class numbers (n, K) int64 of stored rows (n, 2 K + 1)."""
        words = rows[:, self.num_logits :].view(WORDS[self.dtype]).long()
        return words & (MOST_CLASSES[self.dtype] - 1)

    def unpack(self, rows: Tensor) -> Tensor:
        """Stored rows (n, width) -> logits (n, C), float32."""
        if not self.topk:
            return rows.float()
        values = rows[:, : self.num_logits].float()
        logits = values[:, -1:].repeat(1, self.num_classes)
        return logits.scatter_(1, self.classes(rows), values[:, :-1])

    def beside(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What stored rows (n, width) hold and what they should hold for logits (n, C), both (n, num_logits) float64.

        For K largest logits, both are at the classes of the stored row, so that ties make no difference.
        """
        held = rows[:, : self.num_logits].double()
        return held, self.at(logits.double(), self.classes(rows)) if self.topk else logits.double()
