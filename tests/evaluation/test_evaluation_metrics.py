"""Metrics against scikit-learn and against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)

from attar.errors import AttarError
from attar.evaluation import metrics

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((200, 7))
# Class 6 never occurs, as in a class list that is longer than the data.
TARGETS = RNG.integers(0, 6, 200)
PREDICTIONS = SCORES.argmax(axis=1)


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_classification_equals_scikit_learn(wrap):
    scores, targets, predictions = wrap(SCORES), wrap(TARGETS), wrap(PREDICTIONS)
    assert metrics.acc1(scores, targets) == accuracy_score(TARGETS, PREDICTIONS)
    top5 = top_k_accuracy_score(TARGETS, SCORES, k=5, labels=range(7))
    assert metrics.acc5(scores, targets) == top5
    # Predictions of a class that no target has only count as misses.
    with pytest.warns(UserWarning, match="not in y_true"):
        balanced = balanced_accuracy_score(TARGETS, PREDICTIONS)
    assert metrics.mean_per_class_recall(predictions, targets) == pytest.approx(balanced)
    expected = confusion_matrix(TARGETS, PREDICTIONS, labels=range(7))
    assert (metrics.confusion(predictions, targets, 7) == expected).all()


def test_top_k_gives_ties_to_the_lowest_index():
    scores = np.array([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert metrics.top_k(scores, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert metrics.top_k(scores, 9).shape == (2, 4)
    assert metrics.acc1(scores, np.array([2, 0])) == 0.5


def test_top_k_in_blocks_equals_one_sort(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 7)
    whole = np.argsort(-SCORES, axis=1, kind="stable")[:, :3]
    assert (metrics.top_k(SCORES, 3) == whole).all()


def test_acc5_of_fewer_than_five_classes_is_top_of_all():
    assert metrics.acc5(SCORES[:, :3], TARGETS % 3) == 1.0


def test_ece_by_hand():
    # Bins of 1/15: 0.95 and 0.97 fall into the last, 0.62 into (9/15, 10/15].
    confidences = np.array([0.95, 0.97, 0.62, 0.62])
    correct = np.array([True, False, True, True])
    last, middle = abs(0.5 - 0.96), abs(1.0 - 0.62)
    assert metrics.ece(confidences, correct) == pytest.approx((2 * last + 2 * middle) / 4)


def test_ece_of_a_border_belongs_to_the_bin_below():
    # 0.5 lies in (0, 0.5]: alone in its bin it is off by 0.5, with 0.9 in one bin by 0.2.
    assert metrics.ece(np.array([0.5, 0.9]), np.array([0, 1]), bins=2) == pytest.approx(0.3)
    assert metrics.ece(np.array([0.0, 1.0]), np.array([0, 1])) == 0.0


def test_softmax_survives_large_logits_and_equals_torch():
    logits = SCORES * 1000
    expected = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    assert np.allclose(metrics.softmax(logits), expected, atol=1e-12)


def test_agreement_and_mean_cosine():
    assert metrics.agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
    features = RNG.standard_normal((10, 4)).astype(np.float32)
    other = RNG.standard_normal((10, 4)).astype(np.float32)
    expected = torch.cosine_similarity(torch.from_numpy(features), torch.from_numpy(other)).mean()
    assert metrics.mean_cosine(features, other) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.mean_cosine(features, 3 * features) == pytest.approx(1.0)
    assert metrics.mean_cosine(features, 0 * features) == 0.0


def test_no_images_is_an_error_and_not_a_number():
    with pytest.raises(AttarError, match="no images"):
        metrics.acc1(np.empty((0, 3)), np.empty(0))
