"""Intervals for a share and for the difference of two shares of the same images, in closed form.

N: images, R: draws. Confidence is two-sided.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from attar.errors import AttarError
from attar.evaluation.metrics import Floats


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval."""

    value: float
    low: float
    high: float


def wilson(right: float, count: int, confidence: float = 0.95) -> Interval:
    """Return the share right / count with Wilson's score interval (1927), honest for few images.

    Raises:
        AttarError: there are none.
    """
    if count < 1:
        raise AttarError("there are no images to take a share of")
    z = _quantile(confidence)
    share = float(right) / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def paired_difference(one: Floats, other: Floats, confidence: float = 0.95) -> Interval:
    """Return how much more often `one` is right than `other`, on the same images.

    Agresti and Min (2005): with b images that only `one` has right, c that only `other` has, and
    half an image added to each cell of the 2 x 2 table, so n* = N + 2, the interval is

        (b - c)/n* ± z sqrt( ((b + c + 1) - (b - c)²/n*) / n*² + s²/R ),

    with b and c as expected over the draws, and s² the variance between the draws' accuracies: a
    probe's draw of labels is as much a matter of chance as the images.

    Args:
        one: [N] 1 for right, 0 for wrong.
        other: [R, N] the same for each draw, NaN where an image was not asked about.
        confidence: of the interval.

    Raises:
        AttarError: no image was asked about.
    """
    asked = np.isfinite(other)
    counted = asked.any(axis=0)
    count = int(counted.sum())
    if not count:
        raise AttarError("there are no images to compare on")
    share = mean_where(other[:, counted], asked[:, counted], axis=0)
    only_one = float((one[counted] * (1 - share)).sum())
    only_other = float(((1 - one[counted]) * share).sum())
    padded, gain = count + 2, only_one - only_other
    variance = (only_one + only_other + 1 - gain**2 / padded) / padded**2
    some = asked.any(axis=1)
    if some.sum() > 1:
        of_draws = mean_where(other[some], asked[some], axis=1)
        variance += float(of_draws.var(ddof=1)) / len(of_draws)
    half = _quantile(confidence) * float(np.sqrt(variance))
    middle = gain / padded
    return Interval(gain / count, max(-1.0, middle - half), min(1.0, middle + half))


def mean_where(values: Floats, there: NDArray[np.bool_], axis: int) -> Floats:
    """Return means of the values that are there; at least one must be in every row or column."""
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.asarray(total / there.sum(axis=axis))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
