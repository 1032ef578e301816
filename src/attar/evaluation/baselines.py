"""Reference rows that a distilled student has to beat: they cost no training.

N: images, W: width of the backbone's pooled features, D: the teacher's joint dimension.
"""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from attar.errors import AttarError
from attar.evaluation.metrics import Array, Floats, as_array, mean_cosine, unit

Weights = NDArray[np.float32]

L2_GRID: tuple[float, ...] = tuple(float(10.0**e) for e in range(-4, 7))
"""Penalties tried by `fit_projection`, over the range that backbones' feature scales ask for."""

_LOG = logging.getLogger(__name__)


def constant_mean(teacher_features: Iterable[Array]) -> Weights:
    """Return the unit vector [D] nearest on average to the teacher's unit features.

    Args:
        teacher_features: parts [n, D] of the features, normalised inside; read one at a time.

    Raises:
        AttarError: there is no feature at all.
    """
    total: Floats | None = None
    count = 0
    for part in teacher_features:
        of_part = unit(part).sum(axis=0)
        total = of_part if total is None else total + of_part
        count += len(part)
    if total is None or not count:
        raise AttarError("no teacher features to take the mean of")
    return unit(total[None] / count)[0].astype(np.float32)


def fit_projection(
    backbone_features: Array,
    teacher_features: Array,
    *,
    l2: float | Sequence[float] = L2_GRID,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[Weights, Weights]:
    """Fit the teacher's unit features from a frozen backbone's by ridge regression.

    Minimises ‖(X - x̄)Wᵀ - (Y - ȳ)‖² + l2 ‖W‖² in closed form, intercept unpenalised, as
    scikit-learn's Ridge(alpha=l2) does. Of several l2 the one with the highest mean cosine on a
    random validation part is taken, and fitted again on everything.

    Args:
        backbone_features: X [N, W], as they come out of the pooling.
        teacher_features: Y [N, D], normalised inside.
        l2: one penalty, or those to choose from.
        validation_fraction: the share of images that chooses the penalty.
        seed: of the random part.

    Returns:
        weight [D, W] and bias [D] for the network's classifier.

    Raises:
        AttarError: fewer than three images, or not the same number of both.
    """
    x, y = as_array(backbone_features).astype(np.float64), unit(teacher_features)
    if len(x) < 3 or len(x) != len(y):
        raise AttarError(
            f"a projection cannot be fitted on {len(x)} backbone features and {len(y)} teacher "
            "features; give the same three or more images to both"
        )
    penalties = [float(l2)] if isinstance(l2, (int, float)) else [float(value) for value in l2]
    if len(penalties) > 1:
        penalties = [_choose_penalty(x, y, penalties, validation_fraction, seed)]
    weight, bias = _Ridge(x, y).solve(penalties[0])
    return weight.astype(np.float32), bias.astype(np.float32)


class _Ridge:
    """Ridge regression of Y on X for any penalty: the Gram matrix is decomposed once."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self.x_mean, self.y_mean = x.mean(axis=0), y.mean(axis=0)
        centred = x - self.x_mean
        self.eigenvalues, self.vectors = np.linalg.eigh(centred.T @ centred)
        self.moments = self.vectors.T @ (centred.T @ (y - self.y_mean))

    def solve(self, l2: float) -> tuple[Floats, Floats]:
        """Return weight [D, W] and bias [D]."""
        # Rounding may leave a null direction slightly negative, which l2 near 0 would blow up.
        spectrum = np.maximum(self.eigenvalues, 0.0) + l2
        inverse = np.divide(1.0, spectrum, out=np.zeros_like(spectrum), where=spectrum > 0)
        weight = (self.vectors @ (inverse[:, None] * self.moments)).T
        return weight, self.y_mean - weight @ self.x_mean


def _choose_penalty(
    x: Floats, y: Floats, penalties: Sequence[float], fraction: float, seed: int
) -> float:
    order = np.random.default_rng(seed).permutation(len(x))
    held_out = min(max(1, round(fraction * len(x))), len(x) - 2)
    validation, fitting = order[:held_out], order[held_out:]
    ridge = _Ridge(x[fitting], y[fitting])

    def score(l2: float) -> float:
        weight, bias = ridge.solve(l2)
        return mean_cosine(x[validation] @ weight.T + bias, y[validation])

    scores = [score(l2) for l2 in penalties]
    best = int(np.argmax(scores))
    _LOG.info("projection: l2 %g of %s (cosine %.4f)", penalties[best], penalties, scores[best])
    return penalties[best]
