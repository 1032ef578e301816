import math

import numpy as np
import pytest
from scipy import stats

from attar.errors import AttarError
from attar.evaluation.intervals import paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "count", "confidence"),
    [(0, 1, 0.95), (1, 1, 0.95), (0, 7, 0.9), (3, 7, 0.99), (50, 100, 0.95), (984, 1971, 0.95)],
)
def test_wilson_is_scipys(right, count, confidence):
    found = wilson(right, count, confidence)
    wanted = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert found.value == right / count
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(AttarError, match="no images"):
        wilson(0, 0)
    with pytest.raises(AttarError, match="no images"):
        paired_difference(np.ones(2), np.full((3, 2), np.nan))


def test_paired_difference_worked_out_by_hand():
    # Of ten images one side alone has three right, the other alone one.
    one = np.array([1, 1, 1, 0, 1, 1, 0, 0, 1, 1.0])
    other = np.array([[0, 0, 0, 1, 1, 1, 0, 0, 1, 1.0]])
    found = paired_difference(one, other)
    half = 1.959963984540054 * math.sqrt((3.5 + 1.5) - (3.5 - 1.5) ** 2 / 12) / 12
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((2 / 12 - half, 2 / 12 + half))


def test_with_many_images_it_is_the_interval_of_the_mean_difference():
    random = np.random.default_rng(0)
    one = (random.random(6000) < 0.7).astype(float)
    other = np.where(random.random(6000) < 0.6, one, random.random(6000) < 0.5)
    found = paired_difference(one, other[None])
    wanted = stats.norm.interval(0.95, (one - other).mean(), stats.sem(one - other))
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-3)


def test_the_spread_of_the_draws_widens_it():
    one = np.tile([1.0, 0.0], 50)
    alike = np.tile([0.0, 0.0, 1.0, 1.0], 25)
    better = np.where(np.arange(100) < 20, 1.0, alike)
    same = paired_difference(one, np.stack([alike, alike]))
    drawn = np.stack([alike, better])
    apart = paired_difference(one, drawn)
    only_one = float((one * (1 - drawn.mean(0))).sum())
    only_other = float(((1 - one) * drawn.mean(0)).sum())
    of_images = (only_one + only_other + 1 - (only_one - only_other) ** 2 / 102) / 102**2
    of_draws = np.var(drawn.mean(axis=1), ddof=1) / 2
    half = 1.959963984540054 * math.sqrt(of_images + of_draws)
    assert (apart.high - apart.low) / 2 == pytest.approx(half)
    assert apart.high - apart.low > same.high - same.low


def test_images_that_were_not_asked_about_do_not_count():
    one = np.array([1.0, 0.0, 1.0])
    other = np.array([[0.0, np.nan, np.nan], [0.0, 1.0, np.nan]])
    assert paired_difference(one, other).value == pytest.approx((1 - 1) / 2)


def test_five_images_prove_nothing():
    found = paired_difference(np.ones(5), np.ones((10, 5)))
    assert found.value == 0
    assert found.low < -0.2
    assert found.high > 0.2


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        one = (random.random(60) < 0.75).astype(float)
        other = np.where(random.random(60) < 0.5, one, random.random(60) < 0.55)
        found = paired_difference(one, other[None])
        # E[one] - E[other] = 0.75 - (0.5 * 0.75 + 0.5 * 0.55)
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / 600 <= 0.99
