"""Confidence that means what it says: the logit scale, and the threshold of "none of these".

Both are fitted on source validation images, never on the images they are judged by.
"""

import math
from collections.abc import Callable

import numpy as np

from attar.errors import AttarError, UsageError
from attar.evaluation.metrics import Array, Floats, as_array

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 60
"""Golden-section steps: the bracket shrinks by 0.618 each, far below float32 resolution."""


def fit_scale(logits: Array, targets: Array, initial: float = 1.0) -> float:
    """Return the factor s minimising -Σ targets · log softmax(s · logits) (1 / temperature).

    The NLL is convex in s (Guo et al. 2017, section 4.2), so a golden-section search over log s in
    [initial / 100, 10 · initial] finds the minimum. Where every image is classified rightly the
    NLL only falls as s grows, and that range bounds the answer. With no labelled image: `initial`.
    """
    scores = as_array(logits).astype(np.float64)
    weights = _as_probabilities(as_array(targets), scores.shape[1])
    known = weights.sum(axis=1) > 0
    if not known.any():
        return float(initial)
    scores, weights = scores[known], weights[known]
    # log softmax is unchanged by a shift of the row, and a maximum of 0 keeps exp in range.
    scores = scores - scores.max(axis=1, keepdims=True)
    expected = float((weights * scores).sum(axis=1).mean())

    def nll(log_scale: float) -> float:
        scale = math.exp(log_scale)
        return float(np.log(np.exp(scale * scores).sum(axis=1)).mean()) - scale * expected

    return math.exp(_golden_section(nll, math.log(initial / 100), math.log(initial * 10)))


def abstain_threshold(confidences: Array, coverage: float = 0.95) -> float:
    """Return the confidence below which a model should say "none of these".

    It is the (1 - coverage) quantile of the top-1 confidences [N] on validation images, so that
    `coverage` of the images like those still get an answer.
    """
    if not 0 < coverage <= 1:
        raise UsageError(f"coverage {coverage} is not a share of images; give one in (0, 1]")
    values = as_array(confidences)
    if not len(values):
        raise AttarError("no validation images to take the confidence threshold from")
    # "lower": an observed value, so that at least `coverage` of them lie at or above it.
    return float(np.quantile(values, 1 - coverage, method="lower"))


def _as_probabilities(targets: Array, num_classes: int) -> Floats:
    array = as_array(targets)
    if array.ndim == 2:
        return np.asarray(array, dtype=np.float64)
    rows = np.zeros((len(array), num_classes))
    known = np.flatnonzero(array >= 0)
    rows[known, array[known].astype(np.int64)] = 1.0
    return rows


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
