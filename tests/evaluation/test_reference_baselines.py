"""The reference rows: a fitted projection and the constant mean."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from attar.errors import AttarError
from attar.evaluation.baselines import constant_mean, fit_projection
from attar.evaluation.metrics import mean_cosine, unit

RNG = np.random.default_rng(0)
BACKBONE = RNG.standard_normal((60, 10)) * 3 + 1
MAP = RNG.standard_normal((10, 4))
TEACHER = BACKBONE @ MAP + 0.1 * RNG.standard_normal((60, 4))


@pytest.mark.parametrize("l2", [0.01, 10.0, 1000.0])
def test_projection_equals_scikit_learns_ridge(l2):
    weight, bias = fit_projection(BACKBONE, torch.from_numpy(TEACHER), l2=l2)
    expected = Ridge(alpha=l2).fit(BACKBONE, unit(TEACHER))
    assert weight.shape == (4, 10)
    assert bias.shape == (4,)
    assert np.allclose(weight, expected.coef_, atol=1e-6)
    assert np.allclose(bias, expected.intercept_, atol=1e-6)


def test_more_features_than_images_equals_ridge_too():
    wide = RNG.standard_normal((12, 40))
    weight, _ = fit_projection(wide, TEACHER[:12], l2=0.5)
    assert np.allclose(weight, Ridge(alpha=0.5).fit(wide, unit(TEACHER[:12])).coef_, atol=1e-5)


def test_the_penalty_is_chosen_by_unseen_images():
    # Pure noise is best answered by the mean alone, a clean linear map by no penalty.
    noise = RNG.standard_normal((60, 10))
    steered = np.abs(RNG.standard_normal((60, 4)))
    strong, _ = fit_projection(noise, steered, l2=(1e-4, 1e6))
    assert np.abs(strong).max() < 1e-3
    linear = unit(TEACHER) @ RNG.standard_normal((4, 10))
    weak, bias = fit_projection(linear, TEACHER, l2=(1e-4, 1e6))
    assert mean_cosine(linear @ weak.T + bias, TEACHER) > 0.999


def test_projection_of_mismatched_features_is_refused():
    with pytest.raises(AttarError, match="60 backbone features and 59"):
        fit_projection(BACKBONE, TEACHER[:59], l2=1.0)
    with pytest.raises(AttarError, match="1 backbone features"):
        fit_projection(BACKBONE[:1], TEACHER[:1])


def test_constant_mean_has_the_highest_mean_cosine_of_all_constants():
    mean = constant_mean([TEACHER])
    assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-6)
    best = mean_cosine(np.tile(mean, (60, 1)), TEACHER)
    others = [
        mean_cosine(np.tile(mean + 0.1 * RNG.standard_normal(4), (60, 1)), TEACHER)
        for _ in range(50)
    ]
    assert best >= max(others)
