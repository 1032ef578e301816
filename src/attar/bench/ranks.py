"""Rank correlation between what was measured of some rows, and how far it is to be believed."""

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

EXACT = 8
"""Points up to which every order is gone through: 8! = 40,320."""
RANDOM_ORDERS = 10_000
RESAMPLES = 2_000
LEAST_RESAMPLED = 8
"""Points below which none are resampled: too few differ in a draw for an interval."""


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
    """Return the smallest p that permutation_p can give so many points without ties.

    Of all n! orders the observed one and its reverse are as far from 0: 2 / n!. Of random orders
    beyond EXACT points perhaps none is, and the observed one counts alone.
    """
    return 2 / math.factorial(number) if number <= EXACT else 1 / (RANDOM_ORDERS + 1)


def chance_below(level: float, number: int) -> float:
    """Return how likely a permutation p below `level` is where nothing is correlated.

    Of few points p takes few values, and is below `level` less often than `level` says: of five
    points p < 0.05 only for the observed order and its reverse, 2 of 120. Without ties.
    """
    if number > EXACT:
        return level
    own = _unit_ranks(np.arange(number, dtype=np.float64)[:, None])[:, 0]
    orders = np.array(list(itertools.permutations(range(number))))
    far = np.sort(np.abs(own[orders] @ own))
    p = 1 - np.searchsorted(far, far - 1e-12) / len(far)
    return float((p < level).mean())


def resampled_correlation(predictors: Floats, outcomes: Floats, seed: int = 0) -> Floats:
    """Return ρ [D, P, O] of D = RESAMPLES draws of the points with replacement.

    As many points with the same seed are drawn alike, whatever their values. Of fewer than
    LEAST_RESAMPLED points there are no draws: D = 0.
    """
    number = len(outcomes)
    draws = RESAMPLES if number >= LEAST_RESAMPLED else 0
    drawn_points = np.random.default_rng(seed).integers(number, size=(draws, number))
    found = np.empty((draws, predictors.shape[1], outcomes.shape[1]))
    for place, drawn in enumerate(drawn_points):
        found[place] = rank_correlation(predictors[drawn], outcomes[drawn])
    return found


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
