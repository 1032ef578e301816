"""The coherence metrics against numpy loops written from the equations."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar import metrics
from attar.errors import AttarError, UsageError

Array = NDArray[np.float64]
SEEDS = range(8)


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher features of N images and C class features; odd seeds have twins.

    Values of few steps make ties common among even features that are no twins.
    """
    rng = np.random.default_rng(seed)
    count, classes, dim = (int(rng.integers(low, 14)) for low in (4, 2, 2))

    def features(rows: int) -> Array:
        if seed % 4 == 0:
            steps = rng.integers(-1, 2, (rows, dim)).astype(np.float64)
            steps[:, 0] += 2  # no row of zeros
            return steps
        return rng.normal(size=(rows, dim))

    s, v, t = features(count), features(count), features(classes)
    v = v + s
    if seed % 2:
        for rows in (s, v, t):
            twins = rng.integers(0, len(rows), (len(rows) // 2, 2))
            for one, other in twins:
                rows[one] = rows[other]
    return torch.from_numpy(s), torch.from_numpy(v), torch.from_numpy(t)


def unit(rows: Tensor) -> Array:
    values = rows.double().numpy()
    return np.array([row / math.sqrt(sum(x * x for x in row)) for row in values])


def distance(a: Array, b: Array) -> float:
    # Rounded, so that what is equal on paper is equal here.
    return round(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)), 10)


def relative_coherence(s: Array, v: Array) -> float:
    hits = 0
    for i in range(len(s)):
        apart = [distance(x, s[i]) for x in v]
        hits += apart.index(min(apart)) == i
    return hits / len(s)


def neighbours(x: Array, i: int, k: int) -> set[int]:
    others = [j for j in range(len(x)) if j != i]
    return set(sorted(others, key=lambda j: (distance(x[i], x[j]), j))[:k])


def neighborhood_overlap(s: Array, v: Array, k: int) -> float:
    shared = [len(neighbours(s, i, k) & neighbours(v, i, k)) for i in range(len(s))]
    return sum(shared) / (k * len(s))


def alignment_inversions(s: Array, v: Array, t: Array, k: int) -> float:
    total = 0
    for i in range(len(s)):
        order = sorted(range(len(t)), key=lambda c, i=i: (distance(v[i], t[c]), c))[:k]
        a = [distance(s[i], t[c]) for c in order]
        total += sum(a[x] > a[y] for y in range(len(a)) for x in range(y))
    return total / len(s)


@pytest.fixture(params=[None, 1, 5, 40], ids=lambda n: f"{n or 'all'} at once")
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the same in blocks of other sizes, down to one row."""
    if request.param:
        monkeypatch.setattr(metrics, "SCORES_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", SEEDS)
def test_relative_coherence(seed: int) -> None:
    s, v, _ = drawn(seed)
    found = metrics.relative_coherence(s, v)
    assert isinstance(found, float)
    assert found == pytest.approx(relative_coherence(unit(s), unit(v)), abs=1e-12)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", SEEDS)
def test_neighborhood_overlap(seed: int) -> None:
    s, v, _ = drawn(seed)
    ks = [k for k in (1, 2, 3, 5, 10) if k < len(s)]
    expected = [neighborhood_overlap(unit(s), unit(v), k) for k in ks]
    assert [metrics.neighborhood_overlap(s, v, k) for k in ks] == pytest.approx(expected, abs=1e-12)
    assert metrics.neighborhood_overlaps(s, v, ks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", SEEDS)
def test_alignment_inversions(seed: int) -> None:
    s, v, t = drawn(seed)
    for k in (1, 2, 3, 5, 100):
        found = metrics.alignment_inversions(s, v, t, k)
        expected = alignment_inversions(unit(s), unit(v), unit(t), k)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", SEEDS)
def test_feature_gap(seed: int) -> None:
    s, v, _ = drawn(seed)
    a, b = unit(s), unit(v)
    apart = [sum((x - y) ** 2) for x, y in zip(a, b, strict=True)]
    angles = [math.degrees(math.acos(np.clip(x @ y, -1, 1))) for x, y in zip(a, b, strict=True)]
    assert metrics.feature_gap(s, v) == pytest.approx((np.mean(apart), np.mean(angles)), abs=1e-5)


def test_feature_gap_by_hand() -> None:
    s = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    v = torch.tensor([[5.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [7.0, 0.0]])
    squares = [0, 2, 4, 2 - math.sqrt(2)]
    expected = (sum(squares) / 4, (0 + 90 + 180 + 45) / 4)
    assert metrics.feature_gap(s, v) == pytest.approx(expected, abs=1e-12)


def test_a_small_angle_is_not_lost() -> None:
    s = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    v = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert metrics.feature_gap(s, v)[1] == pytest.approx(math.degrees(1e-9), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_text_spectrum(seed: int) -> None:
    t = drawn(seed)[2]
    rows = unit(t)
    centred = rows - rows.mean(axis=0)
    # The singular values from the other side: roots of the eigenvalues of the scatter matrix.
    values = np.sqrt(np.clip(np.linalg.eigvalsh(centred.T @ centred)[::-1], 0, None))
    pairs = [rows[i] @ rows[j] for j in range(len(rows)) for i in range(j)]
    for top in (1, 3, 10):
        found, cosine = metrics.text_spectrum(t, top)
        assert len(found) == min(top, *t.shape)
        assert found == pytest.approx(values[: len(found)].tolist(), abs=1e-6)
        assert found == sorted(found, reverse=True)
        assert cosine == pytest.approx(np.mean(pairs), abs=1e-10)


def test_text_spectrum_of_few_classes() -> None:
    values, cosine = metrics.text_spectrum(torch.tensor([[3.0, 0.0]]))
    assert values == pytest.approx([0])
    assert math.isnan(cosine)
    values, cosine = metrics.text_spectrum(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    assert values == pytest.approx([1, 0], abs=1e-9)
    assert cosine == pytest.approx(0)
    with pytest.raises(UsageError, match="no classes"):
        metrics.text_spectrum(torch.zeros(0, 4))


def test_a_student_that_is_its_teacher() -> None:
    v, t = torch.randn(40, 6), torch.randn(9, 6)
    assert metrics.relative_coherence(3 * v, v) == 1
    assert metrics.neighborhood_overlap(0.1 * v, v, 7) == 1
    assert metrics.alignment_inversions(v, v, t, 9) == 0
    assert metrics.feature_gap(v, v) == (0, 0)


def test_a_student_that_is_the_teachers_opposite() -> None:
    v, t = torch.randn(40, 6), torch.randn(9, 6)
    assert metrics.relative_coherence(-v, v) == 0
    # Turned round as a whole, the images keep their neighbours.
    assert metrics.neighborhood_overlap(-v, v, 7) == 1
    assert metrics.alignment_inversions(-v, v, t, 5) == 5 * 4 / 2


def test_one_image() -> None:
    s, v, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.eye(2)
    assert metrics.relative_coherence(s, v) == 1
    assert metrics.alignment_inversions(s, v, t, 2) == 1
    assert metrics.feature_gap(s, v) == pytest.approx((2, 90))
    with pytest.raises(UsageError, match="fewer than the 1 images"):
        metrics.neighborhood_overlap(s, v, 1)


@pytest.mark.parametrize("dim", [2, 37, 768])
@pytest.mark.parametrize("at_once", [16_000_000, 130, 33])
def test_equal_rows_are_ties_however_a_product_rounds_them(
    dim: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", at_once)
    kinds = torch.randn(3, dim, generator=torch.Generator().manual_seed(dim))
    v = kinds[torch.arange(33) % 3]
    # Of eleven equal rows the first is found, for all of them.
    assert metrics.relative_coherence(v, v) == 3 / 33
    # The ten neighbours of its own kind, whatever order they come in.
    assert metrics.neighborhood_overlap(v, v + 0, 10) == 1
    # Here the first k of 32 equal rows: lowest index first in both spaces.
    assert metrics.neighborhood_overlap(torch.ones(33, dim), kinds[:1].expand(33, dim), 4) == 1
    # The student's first four against the teacher's four nearest twins.
    twins = [sorted(j for j in range(33) if j % 3 == i % 3 and j != i)[:4] for i in range(33)]
    first = [[j for j in range(5) if j != i][:4] for i in range(33)]
    shared = sum(len({*a} & {*b}) for a, b in zip(twins, first, strict=True))
    found = metrics.neighborhood_overlap(torch.ones(33, dim), v, 4)
    assert found == pytest.approx(shared / (4 * 33))


def test_neighbourhoods_need_no_common_space() -> None:
    v = torch.randn(30, 4)
    wider = torch.cat([v, torch.zeros(30, 3)], dim=1)
    assert metrics.neighborhood_overlap(wider, v, 5) == 1


def test_a_row_of_zeros_lies_at_distance_one() -> None:
    s = torch.tensor([[-1.0, 0.0], [0.3, 0.91**0.5]])
    v = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    # Squared distances to the zeros and to the other: 1 and 4; 1 and 2 - 0.6.
    assert metrics.relative_coherence(s, v) == 1 / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_is_measured_as_it_is_and_left_alone(dtype: torch.dtype) -> None:
    s, v = (x.to(dtype) for x in drawn(1)[:2])
    before = s.clone(), v.clone()
    assert metrics.relative_coherence(s, v) == relative_coherence(unit(s), unit(v))
    assert metrics.neighborhood_overlap(s, v, 2) == neighborhood_overlap(unit(s), unit(v), 2)
    metrics.feature_gap(s.requires_grad_(), v)
    assert torch.equal(s, before[0])
    assert torch.equal(v, before[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: metrics.relative_coherence(x, x[:3]), r"\[4, 5\].*\[3, 5\] are no pairs"),
        (lambda x, t: metrics.relative_coherence(x[:0], x[:0]), "no images"),
        (lambda x, t: metrics.neighborhood_overlap(x, x[:3], 1), "4 images, .* of 3"),
        (lambda x, t: metrics.neighborhood_overlap(x, x, 4), "k = 4 .* fewer than the 4 images"),
        (lambda x, t: metrics.neighborhood_overlap(x, x, 0), "k = 0"),
        (lambda x, t: metrics.neighborhood_overlaps(x, x, (1, 4)), "k = 4"),
        (lambda x, t: metrics.alignment_inversions(x, x, t, 0), "k = 0"),
        (lambda x, t: metrics.alignment_inversions(x, x, t[:, :2], 2), "do not fit"),
        (lambda x, t: metrics.feature_gap(x, x[:, :2]), "no pairs"),
    ],
)
def test_wrong_use_is_refused(call, message) -> None:
    with pytest.raises(UsageError, match=message):
        call(torch.randn(4, 5), torch.randn(3, 5))


def test_what_is_not_finite_is_refused() -> None:
    broken = torch.randn(4, 5)
    broken[2, 1] = math.nan
    for call in (metrics.relative_coherence, metrics.feature_gap):
        with pytest.raises(AttarError, match="not finite"):
            call(broken, torch.randn(4, 5))
