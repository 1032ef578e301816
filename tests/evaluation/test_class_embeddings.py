"""Class embeddings made of images, against loops."""

import numpy as np
import pytest

from attar.errors import UsageError
from attar.evaluation.class_embeddings import class_means, mean_cosines, neighbour_cosines

N, M, C, D = 7, 23, 3, 5
RNG = np.random.default_rng(0)
QUERIES, IMAGES = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
LABELS = np.array([i % C if i % 5 else -1 for i in range(M)])
QUERY_KEYS = [f"q{i}" for i in range(N)]
KEYS = [f"k{i}" for i in range(M)]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(k: int, queries=QUERIES, query_keys=QUERY_KEYS) -> np.ndarray:
    found = np.full((len(queries), C), -1.0)
    for n, query in enumerate(unit(queries)):
        for c in range(C):
            own = [unit(IMAGES)[m] for m in range(M) if LABELS[m] == c and KEYS[m] != query_keys[n]]
            nearest = sorted(own, key=lambda f, q=query: -float(q @ f))[:k]
            if nearest:
                found[n, c] = query @ unit(np.mean(nearest, axis=0))
    return found


def test_means() -> None:
    found = class_means([IMAGES], LABELS, ["a", "b", "c"])
    expected = [unit(unit(IMAGES)[c == LABELS].mean(axis=0)) for c in range(C)]
    np.testing.assert_allclose(found, expected)
    with pytest.raises(UsageError, match="class 'd' has no labelled image"):
        class_means([IMAGES], LABELS, ["a", "b", "c", "d"])


def test_cosines_with_means_skip_a_class_without_images() -> None:
    found = mean_cosines(QUERIES, IMAGES, np.where(LABELS == 1, 3, LABELS), 4)
    means = class_means([IMAGES], LABELS, ["a", "b", "c"])
    np.testing.assert_allclose(found[:, [0, 3, 2]], unit(QUERIES) @ means.T)
    assert found[:, 1].tolist() == [-1.0] * N


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_neighbours(k: int) -> None:
    found = neighbour_cosines((QUERIES, QUERY_KEYS), (IMAGES, KEYS), LABELS, C, k)
    np.testing.assert_allclose(found, by_loops(k))


def test_an_image_is_never_its_own_neighbour() -> None:
    found = neighbour_cosines((IMAGES, KEYS), (IMAGES, KEYS), LABELS, C, 1)
    np.testing.assert_allclose(found, by_loops(1, IMAGES, KEYS))
    assert found.max() < 0.999
    alone = neighbour_cosines((IMAGES[:1], ["x"]), (IMAGES[:1], ["x"]), np.array([0]), 2, 3)
    assert alone.tolist() == [[-1.0, -1.0]]
