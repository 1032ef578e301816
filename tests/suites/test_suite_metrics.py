"""The metrics of the suites against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_auc_score

from attar.errors import AttarError
from attar.evaluation.metrics import (
    average_precision_11_points,
    mean_average_precision_11_points,
    roc_auc,
)
from attar.suites.effective_robustness import effective_robustness


@pytest.mark.parametrize("levels", [4, 1000])
def test_roc_auc_is_scikit_learns_with_and_without_ties(levels: int) -> None:
    chance = np.random.default_rng(0)
    scores, positive = chance.integers(0, levels, 300) / levels, chance.random(300) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_roc_auc_needs_both_classes() -> None:
    with pytest.raises(AttarError, match="positive and negative"):
        roc_auc(np.arange(3.0), np.ones(3))


def test_average_precision_by_hand() -> None:
    """Ranked: hit, miss, hit, miss, miss. Precision is 1 up to a recall of 1/2, then 2/3."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    positive = np.array([1, 0, 1, 0, 0])
    expected = (6 * 1 + 5 * 2 / 3) / 11  # 0, .1 ... .5 and .6 ... 1
    assert average_precision_11_points(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_average_precision_is_the_one_of_scikit_learns_curve() -> None:
    chance = np.random.default_rng(1)
    for positives in (1, 3, 10, 33):
        positive = np.arange(60) < positives
        scores = chance.permutation(60) / 60
        precision, recall, _ = precision_recall_curve(positive, scores)
        # The curve's own end (precision 1, recall 0) was not measured.
        precision, recall = precision[:-1], recall[:-1]
        levels = [k / 10 - 1e-9 for k in range(11)]
        expected = np.mean([precision[recall >= level].max() for level in levels])
        assert average_precision_11_points(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_no_image_shows_does_not_count() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert mean_average_precision_11_points(scores, np.array([[1, 0], [0, 0]])) == 1
    with pytest.raises(AttarError, match="show a class"):
        mean_average_precision_11_points(scores, np.zeros((2, 2)))


def _expit(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def test_models_on_the_line_have_no_effective_robustness_and_one_above_has() -> None:
    home = np.array([0.3, 0.5, 0.7])
    away = _expit(0.8 * np.log(home / (1 - home)) - 0.5)
    on_line = effective_robustness(home, away, (1000, 1000))
    assert on_line == pytest.approx(np.zeros(3), abs=1e-12)
    # Two more at 0.5, as far above as below the line on the logit scale, leave it where it is.
    shift = np.array([0.4, -0.4])
    five = effective_robustness(
        np.append(home, [0.5, 0.5]), np.append(away, _expit(-0.5 + shift)), (1000, 1000)
    )
    assert five == pytest.approx(np.append(np.zeros(3), _expit(-0.5 + shift) - _expit(-0.5)))


@pytest.mark.parametrize("home", [[0.3, 0.5], [0.4, 0.4, 0.4]])
def test_no_line_through_too_few_or_equal_models(home: list[float]) -> None:
    assert effective_robustness(np.array(home), np.array(home) / 2, (100, 100)) is None


def test_accuracies_of_nothing_and_all_are_moved_by_half_an_image() -> None:
    beyond = effective_robustness(np.array([0, 0.5, 1]), np.array([0, 0.5, 1]), (10, 10))
    assert beyond == pytest.approx([-0.05, 0, 0.05])
