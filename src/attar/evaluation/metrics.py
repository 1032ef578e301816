"""Metrics on arrays: no model, no file, nothing about how the numbers came to be.

N: images, C: classes, D: joint dimension. Every function takes numpy or torch arrays, computes in
float64 and returns plain floats in 0..1 (cosines in -1..1). Equal scores go to the lowest index.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import AttarError

Array = NDArray[Any] | Tensor
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

ROWS_AT_ONCE = 8192
"""What is computed row by row over many images takes so many at a time: memory for no more."""


def as_array(values: Array) -> NDArray[Any]:
    """Return a numpy view of a numpy or torch array (detached and on the CPU)."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def unit(features: Array) -> Floats:
    """Return rows of length 1 [N, D]; a zero row stays zero."""
    rows = as_array(features).astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def softmax(logits: Array) -> Floats:
    """Return class probabilities [N, C]."""
    values = as_array(logits).astype(np.float64)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def top_k(scores: Array, k: int) -> Indices:
    """Return the k best classes of each row [N, min(k, C)], best first."""
    values = as_array(scores)
    order = np.empty((len(values), min(k, values.shape[1])), dtype=np.int64)
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        order[rows] = np.argsort(-values[rows], axis=1, kind="stable")[:, :k]
    return order


def top_k_accuracy(scores: Array, targets: Array, k: int) -> float:
    """Return the share of rows of scores [N, C] whose target [N] is among the k best classes."""
    wanted = _nonempty(targets)
    return float((top_k(scores, k) == wanted[:, None]).any(axis=1).mean())


def acc1(scores: Array, targets: Array) -> float:
    """Return top-1 accuracy of scores [N, C] against targets [N]."""
    return top_k_accuracy(scores, targets, 1)


def acc5(scores: Array, targets: Array) -> float:
    """Return top-5 accuracy, or top-C where there are fewer than five classes (then 1.0)."""
    return top_k_accuracy(scores, targets, 5)


def mean_per_class_recall(predictions: Array, targets: Array) -> float:
    """Return recall averaged over the classes that occur in targets [N] (balanced accuracy)."""
    wanted = _nonempty(targets)
    hits = as_array(predictions) == wanted
    classes, position = np.unique(wanted, return_inverse=True)
    counts = np.bincount(position, minlength=len(classes))
    return float((np.bincount(position, weights=hits, minlength=len(classes)) / counts).mean())


def roc_auc(scores: Array, positive: Array) -> float:
    """Return the area under the ROC curve of scores [N] for which rows are positive [N].

    The Mann-Whitney form: the share of (positive, negative) pairs that are in the right order, a
    tie counting half. 0.5 is chance.

    Raises:
        AttarError: no positive or no negative row.
    """
    values, is_positive = _nonempty(scores), as_array(positive).astype(bool)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        raise AttarError("the area under the ROC curve needs positive and negative images")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1; equal scores share theirs
    pairs_won = ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(pairs_won / (positives * negatives))


def average_precision_11_points(scores: Array, positive: Array) -> float:
    """Return the average precision of scores [N] for rows that are positive [N], as in VOC 2007.

    AP = 1/11 Σ_{r in 0, 0.1, ..., 1} max precision at a recall of at least r (Everingham et al.
    2010, eq. 1). Equal scores are answers given together: in which order the rows come makes no
    difference, and a constant score has the precision of guessing.

    Raises:
        AttarError: no positive row.
    """
    order = np.argsort(-_nonempty(scores), kind="stable")
    values, is_positive = as_array(scores)[order], as_array(positive).astype(bool)[order]
    if not is_positive.any():
        raise AttarError("the average precision needs positive images")
    ends = np.append(values[1:] != values[:-1], True)  # the last of each run of equal scores
    found = np.cumsum(is_positive)
    precision, recall = found / np.arange(1, len(found) + 1), found / found[-1]
    precision, recall = precision[ends], recall[ends]
    # Recall is k / n exactly at the k-th positive: 1e-9 keeps 0.1 * 3 from missing 3/10.
    levels = np.linspace(0, 1, 11) - 1e-9
    return float(np.mean([precision[recall >= level].max() for level in levels]))


def mean_average_precision_11_points(scores: Array, targets: Array) -> float:
    """Return the mean over classes of `average_precision_11_points`, scores and targets [N, C].

    A class that no image shows does not count.

    Raises:
        AttarError: no image shows any class.
    """
    values, wanted = as_array(scores), as_array(targets).astype(bool)
    shown = np.flatnonzero(_nonempty(wanted).any(axis=0))
    if not len(shown):
        raise AttarError("the mean average precision needs images that show a class")
    return float(np.mean([average_precision_11_points(values[:, c], wanted[:, c]) for c in shown]))


def ece(confidences: Array, correct: Array, bins: int = 15) -> float:
    """Return the expected calibration error over equal-width bins (Guo et al. 2017, eq. 3).

    ECE = Σ_b |b|/N · |accuracy(b) - mean confidence(b)|, bin b holding confidences in
    ((b-1)/bins, b/bins]; a confidence of 0 falls into the first bin.
    """
    confidence = _nonempty(confidences).astype(np.float64)
    hits = as_array(correct).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=hits - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def confusion(predictions: Array, targets: Array, num_classes: int) -> Indices:
    """Return counts [C, C]: row = true class, column = predicted class."""
    cells = as_array(targets).astype(np.int64) * num_classes + as_array(predictions)
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def agreement(predictions: Array, teacher_predictions: Array) -> float:
    """Return the share of images [N] that both models put into the same class."""
    return float((as_array(predictions) == _nonempty(teacher_predictions)).mean())


def mean_cosine(features: Array, teacher_features: Array) -> float:
    """Return the mean cosine between paired rows of two [N, D] arrays."""
    _nonempty(features)
    return float((unit(features) * unit(teacher_features)).sum(axis=1).mean())


def _nonempty(values: Array) -> NDArray[Any]:
    array = as_array(values)
    if not len(array):
        raise AttarError("there are no images to measure")
    return array
