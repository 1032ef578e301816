"""The logit scale is the one that made the labels; the threshold keeps its promise."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from attar.errors import AttarError, UsageError
from attar.evaluation.calibration import abstain_threshold, fit_scale
from attar.evaluation.metrics import ece, softmax, top_k, unit

TRUE_SCALE = 12.0


def draw(count=20_000, classes=5, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, dim)) * rng.uniform(0.5, 3, (count, 1))
    class_features = rng.standard_normal((classes, dim))
    cosines = unit(features) @ unit(class_features).T
    probabilities = softmax(TRUE_SCALE * cosines)
    drawn = (probabilities.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return cosines, probabilities, drawn


@pytest.mark.parametrize("initial", [100.0, 2.0])
def test_hard_labels_recover_the_scale_that_made_them(initial):
    cosines, _, labels = draw()
    scale = fit_scale(cosines, labels, initial)
    assert scale == pytest.approx(TRUE_SCALE, rel=0.03)
    confidences = softmax(scale * cosines).max(axis=1)
    assert ece(confidences, top_k(cosines, 1)[:, 0] == labels) < 0.015


def test_soft_targets_recover_the_scale_exactly():
    cosines, probabilities, _ = draw(count=200)
    as_torch = [torch.from_numpy(a) for a in (cosines, probabilities)]
    assert fit_scale(*as_torch, 100.0) == pytest.approx(TRUE_SCALE, rel=1e-5)


def test_the_minimum_is_scipys():
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((50, 4)), rng.integers(0, 4, 50)
    labels[:25] = logits[:25].argmax(axis=1)

    def nll(scale):
        return -np.log(softmax(scale * logits)[np.arange(50), labels]).mean()

    expected = minimize_scalar(nll, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-9}).x
    assert 0.1 < expected < 5
    assert fit_scale(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_images_without_a_label_do_not_count():
    cosines, _, labels = draw(count=300)
    hidden = labels.copy()
    hidden[100:] = -1
    known = fit_scale(cosines[:100], labels[:100], 100.0)
    assert fit_scale(cosines, hidden, 100.0) == pytest.approx(known)
    assert fit_scale(cosines, np.full(300, -1), 77.0) == 77.0


def test_a_faultless_model_gets_a_finite_scale():
    logits = np.eye(3)
    assert 1 < fit_scale(logits, np.arange(3)) <= 10


def test_threshold_covers_what_was_asked():
    confidences = np.random.default_rng(0).random(1000)
    threshold = abstain_threshold(confidences, coverage=0.9)
    assert 0.9 <= (confidences >= threshold).mean() < 0.902
    assert abstain_threshold(confidences, coverage=1.0) == confidences.min()
    with pytest.raises(UsageError, match=r"coverage 1\.5"):
        abstain_threshold(confidences, coverage=1.5)
    with pytest.raises(AttarError, match="no validation images"):
        abstain_threshold(np.empty(0))
