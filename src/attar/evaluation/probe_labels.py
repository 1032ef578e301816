"""What the images of a probe show: one class each, or any number of classes.

Labels are class indices [N] (-1: not known), or [N, C] whether an image shows a class. Of the first
a probe is one softmax over the classes, chosen by its accuracy; of the second it is one sigmoid a
class, as DIME-FM probes VOC 2007, chosen by the mean over classes of VOC's average precision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.metrics import (
    Array,
    Floats,
    Indices,
    as_array,
    mean_average_precision_11_points,
    softmax,
)
from attar.evaluation.zero_shot import classification_metrics
from attar.files import sha256_text

FOLDS = 5
"""One image of five validates."""

Labels = Indices | NDArray[np.bool_]


def labels_of(table: ImageTable) -> Labels:
    """Return the labels of all images of a table."""
    if table.has_label_sets:
        return table.multi_hot(range(len(table))).astype(bool)
    return np.asarray(table.labels, dtype=np.int64)


def as_labels(labels: Array) -> Labels:
    """Return labels as one of the two kinds, by their shape."""
    given = as_array(labels)
    return given.astype(bool) if given.ndim == 2 else given.astype(np.int64)


def known_rows(labels: Labels) -> Indices:
    """Return the rows whose label is known; an image that shows none of the classes says so."""
    return np.arange(len(labels)) if labels.ndim == 2 else np.flatnonzero(labels >= 0)


def measure_of(labels: Labels) -> str:
    """Return the name of the metric that probes of such labels are chosen and reported by."""
    return "map_11_points" if labels.ndim == 2 else "acc1"


def metrics_of(logits: Floats, labels: Labels) -> dict[str, float]:
    """Return the metrics of logits [N, C] on images whose labels are known."""
    if labels.ndim == 2:
        return {measure_of(labels): mean_average_precision_11_points(logits, labels)}
    return classification_metrics(logits, labels.astype(np.int64))


def can_be_measured(labels: Labels) -> bool:
    """Say whether known labels have anything to be right about."""
    return bool(labels.any()) if labels.ndim == 2 else bool(len(labels))


def can_be_learnt(labels: Labels) -> bool:
    """Say whether images tell classes apart: two classes, or one that only some images show."""
    if labels.ndim == 2:
        return bool((labels.any(axis=0) & ~labels.all(axis=0)).any())
    return len(np.unique(labels)) > 1


def totals(logits: Floats, labels: Labels) -> tuple[float, float]:
    """Return what a setting is judged by: the measure and the likelihood, times the images.

    Of one class an image the first is the number of right answers, so that equal ones are equal.
    """
    if labels.ndim == 2:
        right = len(labels) * mean_average_precision_11_points(logits, labels)
    else:
        right = float((logits.argmax(axis=1) == labels).sum())
    return right, len(labels) * likelihood(logits, labels)


def likelihood(logits: Floats, labels: Labels) -> float:
    """Return the mean over images of the log-probability of their labels."""
    if labels.ndim == 2:
        # log σ(±x) without an overflow; the logits of classes that were never shown are -inf.
        signed = np.where(labels, logits, -logits)
        return float(np.maximum(-np.logaddexp(0, -signed), np.log(1e-12)).sum(axis=1).mean())
    chance = softmax(logits)[np.arange(len(labels)), labels]
    return float(np.log(np.maximum(chance, 1e-12)).mean())


def draw_shots(labels: Labels, keys: Sequence[str], shots: int, seed: int) -> Indices:
    """Return rows that show every class `shots` times, in the order of the rows.

    Rows with one key show one image, which is drawn once. The order of drawing is that of
    sha256(seed, key): it depends on nothing but the images, and fewer shots of a seed are among its
    more. An image of several classes is drawn when one of them still lacks some, and counts for
    all: of frequent classes more are then learnt from.

    Raises:
        UsageError: a class with fewer images.
    """
    order = sorted(range(len(keys)), key=lambda row: sha256_text(f"{seed}:{keys[row]}"))
    seen: set[tuple[int, str]] = set()
    drawn: set[int] = set()
    counts = dict.fromkeys((label for row in order for label in _classes(labels, row)), 0)
    for row in order:
        shown = [label for label in _classes(labels, row) if (label, keys[row]) not in seen]
        seen.update((label, keys[row]) for label in shown)
        if any(counts[label] < shots for label in shown):
            drawn.add(row)
        for label in shown:
            counts[label] += 1
    for label, count in counts.items():
        if count < shots:
            raise UsageError(f"class {label} has {count} images, too few for {shots} shots")
    return np.sort(list(drawn)).astype(np.int64)


def smallest_class(labels: Labels, keys: Sequence[str]) -> tuple[int, int]:
    """Return the class with the fewest images among those with any, and how many it has.

    Equal keys are one image, as `draw_shots` has it.
    """
    shown = {(label, key) for row, key in enumerate(keys) for label in _classes(labels, row)}
    classes, counts = np.unique([label for label, _ in shown], return_counts=True)
    return int(classes[counts.argmin()]), int(counts.min())


def draw_folds(labels: Labels, seed: int, count: int = FOLDS) -> Indices:
    """Return the fold [N] in which each row validates, stratified by class.

    Every class is spread over the folds as evenly as it can be; the only image of a class is always
    learnt from (-1). Images of several classes are stratified by the rarest one that they show.
    """
    random, folds, begin = np.random.default_rng(seed), np.full(len(labels), -1), 0
    groups = _rarest(labels) if labels.ndim == 2 else labels
    for group in np.unique(groups):
        rows = random.permutation(np.flatnonzero(groups == group))
        if len(rows) > 1:
            # Each class goes on where the last one stopped, so that the folds are of one size.
            folds[rows] = (begin + np.arange(len(rows))) % count
            begin += len(rows)
    return folds


def _classes(labels: Labels, row: int) -> list[int]:
    if labels.ndim == 2:
        return [int(label) for label in np.flatnonzero(labels[row])]
    return [int(labels[row])] if labels[row] >= 0 else []


def _rarest(shown: Labels) -> Indices:
    """Return the rarest class [N] that each image shows, -1 where it shows none."""
    counts = np.where(shown, shown.sum(axis=0), len(shown) + 1)
    return np.where(shown.any(axis=1), counts.argmin(axis=1), -1)
