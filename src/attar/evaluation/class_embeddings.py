"""Class embeddings made of images: means of a class, and means near the image that is asked about.

N: images to classify, M: labelled images, C: classes, D: joint dimension.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from attar.errors import UsageError
from attar.evaluation.metrics import Array, Floats, as_array, unit

_ROWS_AT_ONCE = 512
_NO_IMAGE = -1.0
"""Cosine with a class that has no image, or none but the one that is asked about."""


def class_means(features: Iterable[Array], labels: Array, class_names: Sequence[str]) -> Floats:
    """Return the mean unit feature of each class's images, as a unit row [C, D].

    Args:
        features: [M, D] in consecutive parts [m, D], read one at a time.
        labels: [M], -1 for none.
        class_names: [C] for the message.

    Raises:
        UsageError: a class has no image.
    """
    known = as_array(labels)
    empty = [name for index, name in enumerate(class_names) if not (known == index).any()]
    if empty:
        raise UsageError(f"class {empty[0]!r} has no labelled image to take the mean of")
    sums: dict[int, Floats] = {}
    start = 0
    for part in features:
        rows, here = unit(part), known[start : start + len(part)]
        for label in np.unique(here[here >= 0]).tolist():
            sums[label] = sums.get(label, 0.0) + rows[here == label].sum(axis=0)
        start += len(rows)
    counts = np.bincount(known[known >= 0], minlength=len(class_names))
    return unit(np.stack([sums[c] / counts[c] for c in range(len(class_names))]))


def mean_cosines(queries: Array, images: Array, labels: Array, num_classes: int) -> Floats:
    """Return cos(q, mean unit feature of the class's images), -1 for a class without an image.

    Args:
        queries: [N, D].
        images: [M, D].
        labels: [M] the class of each image, -1 for none.
        num_classes: C.

    Returns:
        [N, C] cosines.
    """
    asked, rows, known = unit(queries), unit(images), as_array(labels)
    result = np.full((len(asked), num_classes), _NO_IMAGE)
    for label in np.unique(known[known >= 0]):
        mean = unit(rows[known == label].mean(axis=0, keepdims=True))
        result[:, label] = (asked @ mean.T)[:, 0]
    return result


def neighbour_cosines(
    queries: tuple[Array, Sequence[str]],
    images: tuple[Array, Sequence[str]],
    labels: Array,
    num_classes: int,
    neighbours: int = 10,
) -> Floats:
    """Return cos(q, mean of the k images of the class that are nearest to q), for each class.

    An image is never its own neighbour: those with the key of the query are left out. A class with
    fewer images than k gives them all.

    Args:
        queries: features [N, D] of the images to classify, and their keys.
        images: features [M, D] of the labelled images, and their keys.
        labels: [M] the class of each of them, -1 for none.
        num_classes: C.
        neighbours: k.

    Returns:
        [N, C] cosines.
    """
    asked, known = unit(queries[0]), unit(images[0])
    classes, keys = as_array(labels), np.asarray(images[1])
    result = np.full((len(asked), num_classes), _NO_IMAGE)
    for label in range(num_classes):
        own = known[classes == label], keys[classes == label]
        for start in range(0, len(asked), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            some = np.asarray(queries[1][start : start + _ROWS_AT_ONCE])
            result[rows, label] = _nearest_mean(asked[rows], some, *own, neighbours)
    return result


def _nearest_mean(
    queries: Floats, query_keys: NDArray[np.str_], own: Floats, keys: NDArray[np.str_], k: int
) -> Floats:
    """Return [n] the cosine of each query with the mean of its k nearest of one class."""
    if not len(own):
        return np.full(len(queries), _NO_IMAGE)
    cosines = np.where(query_keys[:, None] == keys, -np.inf, queries @ own.T)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    counted = np.isfinite(np.take_along_axis(cosines, nearest, axis=1))
    means = unit((own[nearest] * counted[..., None]).sum(axis=1))
    found = (queries * means).sum(axis=1)
    return np.where(counted.any(axis=1), found, _NO_IMAGE)
