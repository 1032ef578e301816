"""Rank correlation between what was measured of some rows, and how far it is to be believed."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

EXACT = 8
"""Points up to which every order is gone through: 8! = 40,320."""
RANDOM_ORDERS = 10_000
RESAMPLES = 2_000


def rank_correlation(predictors: Floats, outcomes: Floats) -> Floats:
    """Return Spearman's ρ [P, O] of each predictor [N, P] with each outcome [N, O].

    Equal values share the mean of their ranks; where all are equal ρ is NaN.
    """
    return _unit_ranks(predictors).T @ _unit_ranks(outcomes)


def permutation_p(predictors: Floats, outcomes: Floats, seed: int = 0) -> Floats:
    """Return how often [P, O] a random order of the outcomes gives a ρ as far from 0, or farther.

    Exact up to EXACT points: all orders. Beyond, RANDOM_ORDERS random orders and the one observed.
    """
    own, wanted, number = _unit_ranks(predictors), _unit_ranks(outcomes), len(outcomes)
    if number <= EXACT:
        orders = np.array(list(itertools.permutations(range(number))))
    else:
        shuffled = np.random.default_rng(seed).random((RANDOM_ORDERS, number)).argsort(axis=1)
        orders = np.vstack([np.arange(number), shuffled])
    observed = np.abs(own.T @ wanted)
    farther = np.zeros_like(observed)
    for order in orders:
        farther += np.abs(own.T @ wanted[order]) >= observed - 1e-12
    return np.asarray(np.where(np.isnan(observed), np.nan, farther / len(orders)))


def least_p(number: int) -> float:
    """Return the smallest two-sided p that so many points without ties can have: 2 / n!."""
    return 2 / math.factorial(number)


def resampled_correlation(
    predictors: Floats, outcomes: Floats, groups: Sequence[str], seed: int = 0
) -> Floats:
    """Return ρ [RESAMPLES, P, O] of groups of points drawn with replacement, each as a whole.

    Seeds of one row resemble each other: it is rows that are drawn, never single students.
    """
    members = [np.flatnonzero([g == name for g in groups]) for name in dict.fromkeys(groups)]
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(members), size=len(members))
        points = np.concatenate([members[one] for one in drawn])
        found.append(rank_correlation(predictors[points], outcomes[points]))
    return np.stack(found)


def interval(values: Floats) -> tuple[float, float] | None:
    """Return the middle 95 % of resampled values; draws without an order (NaN) do not count."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def _unit_ranks(values: Floats) -> Floats:
    """Return ranks [N, K], each column with mean 0 and length 1: products are correlations."""
    ranks = rankdata(values, axis=0)
    centred = ranks - ranks.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    return np.asarray(centred / np.where(length > 0, length, np.nan))
