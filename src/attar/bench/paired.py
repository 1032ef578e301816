"""How far apart two rows are, given that they were measured in the same cells."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean difference in points and the interval around it."""

    mean: float
    half_width: float
    cells: int

    def text(self) -> str:
        """Return e.g. "+11.8 [+4.2, +19.4]"."""
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def paired_difference(differences: Sequence[float]) -> Interval | None:
    """Return d̄ ± t(0.975, n-1) · s / √n of n paired differences; None of fewer than two.

    The cells of one grid share training images, so they are not independent and the interval is
    somewhat too narrow; it says how steady a difference is over domains and seeds.
    """
    count = len(differences)
    if count < 2:
        return None
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1))
    half_width = quantile * statistics.stdev(differences) / math.sqrt(count)
    return Interval(mean=statistics.fmean(differences), half_width=half_width, cells=count)
