"""Linear probes: what a linear classifier can read from frozen features.

Both solvers minimise one convex function of the weights W [C, D] and biases b [C],

    J(W, b) = 1/N Σ_i CE(softmax(W z_i + b), y_i) + λ/2 ‖W - W₀‖²

over features z that are standardised on the images it is learnt from (BatchNorm without weights).
Of images with several classes each, CE is the sum over classes of the cross-entropy of
σ(W z_i + b). W₀ is zero, or the class features, where the classifier then begins as the zero-shot
one. The weight decay λ, and for minibatches the learning rate, are chosen on images that no weight
was fitted to.
No function here is given a test image.

N: images, C: classes, D: features, R: coordinates that the images differ in, H: settings.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.errors import UsageError
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.linear_solvers import (
    Classifiers,
    Setting,
    fit_exactly,
    fit_minibatches,
)
from attar.evaluation.metrics import Array, Floats, as_array, unit
from attar.evaluation.probe_labels import (
    FOLDS,
    Labels,
    as_labels,
    can_be_learnt,
    can_be_measured,
    draw_folds,
    totals,
)

WEIGHT_DECAYS = np.logspace(-6, 6, 97)
"""The values of λ; every sixteenth is tried, then the best one's neighbours 8, 4, 2 and 1 away."""
LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The learning rates that minibatches try, each with each of the first values of λ."""
SMALL = 20_000_000
"""Numbers (N · D) up to which scikit-learn fits: 160 MB in float64."""

Fit = Callable[[Floats, Labels, Sequence[Setting]], Classifiers]
"""(features [N, D], labels, settings [H]) -> a classifier for each setting."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear classifier of features as the model gives them."""

    weight: Floats
    """[C, D]"""
    bias: Floats
    """[C]"""

    def logits(self, features: Array) -> Floats:
        """Return logits [N, C] of features [N, D]."""
        return np.asarray(as_array(features).astype(np.float64) @ self.weight.T + self.bias)


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A fitted probe, and what was chosen for it."""

    probe: Probe
    setting: Setting
    val_score: float
    """Accuracy of this setting on the images that chose it; of images with several classes, the
    mean average precision."""
    num_images: int
    """That the probe was learnt from, those that chose included."""
    solver: str


def zero_shot_probe(class_features: Array, logit_scale: float) -> Probe:
    """Return the probe that is the zero-shot classifier of unit features: logits s · z tᵀ."""
    weight = logit_scale * unit(class_features)
    return Probe(weight=weight, bias=np.zeros(len(weight)))


def zero_probe(num_classes: int, dim: int) -> Probe:
    """Return the probe that knows nothing."""
    return Probe(weight=np.zeros((num_classes, dim)), bias=np.zeros(num_classes))


def learn_probe(
    features: Array,
    labels: Array,
    start: Probe,
    config: LinearProbeConfig,
    *,
    validation: NDArray[np.bool_] | None = None,
    seed: int = 0,
    thorough: bool = False,
) -> Learnt:
    """Choose the hyper-parameters on held-back images, then fit on all that are given.

    Args:
        features: [N, D] of the images to learn from and to choose by, together.
        labels: [N] in 0 ... C-1, or [N, C] whether an image shows a class.
        start: where the classifier starts and what it is held near; says what C is.
        config: the solver, and what minibatches need.
        validation: [N] which images choose; none: a fifth of each class, drawn by `seed`.
        seed: draws the images that choose and the minibatches.
        thorough: choose by the mean over all five fifths: a few shots held back once say little.

    Raises:
        UsageError: labels that tell no classes apart, or no image to choose by.
    """
    x, y = as_array(features).astype(np.float64), as_labels(labels)
    if not can_be_learnt(y):
        raise UsageError(f"a probe needs images that tell classes apart; these {len(y)} do not")
    space = _Coordinates(x)
    z, (weight, bias) = space.into(x), space.start_of(start)
    if y.ndim == 2:
        bias = _biases_of_frequency(z, weight, y)
    solver = solver_of(config, x.shape, starts_at_zero=not start.weight.any())
    fit, rates = _fit_with(solver, weight, bias, config, config.search_epochs, seed)
    folds = _folds(y, validation, seed, thorough)
    setting, val_score = search(lambda settings: _score(fit, z, y, folds, settings), rates)
    fit, _ = _fit_with(solver, weight, bias, config, config.epochs, seed)
    found = fit(z, y, [setting])
    probe = space.probe_of(start, found.weights[0], found.biases[0])
    return Learnt(
        probe=probe, setting=setting, val_score=val_score, num_images=len(y), solver=solver
    )


def solver_of(config: LinearProbeConfig, shape: Sequence[int], *, starts_at_zero: bool) -> str:
    """Return "scikit-learn" or "minibatch" for features of a shape [N, D].

    Raises:
        UsageError: scikit-learn is asked to start elsewhere than at zero.
    """
    if config.solver == "auto":
        return "scikit-learn" if starts_at_zero and math.prod(shape) <= SMALL else "minibatch"
    if config.solver == "scikit-learn" and not starts_at_zero:
        raise UsageError("--probe.solver scikit-learn cannot start from text: use minibatch")
    return config.solver


def search(
    score: Callable[[Sequence[Setting]], list[tuple[float, float]]],
    rates: Sequence[float | None],
) -> tuple[Setting, float]:
    """Find the setting with the highest score; return it and the first part of its score.

    Seven values of λ with every learning rate, then, at the best learning rate, the neighbours of
    the best λ at half the distance each time: 8, 4, 2 and 1 places of `WEIGHT_DECAYS`.
    """
    scores: dict[tuple[int, float | None], tuple[float, float]] = {}

    def ask(places: Iterable[tuple[int, float | None]]) -> tuple[int, float | None]:
        new = [p for p in places if 0 <= p[0] < len(WEIGHT_DECAYS) and p not in scores]
        if new:
            settings = [Setting(float(WEIGHT_DECAYS[place]), lr) for place, lr in new]
            scores.update(zip(new, score(settings), strict=True))
        return max(scores, key=lambda place: scores[place])

    place, lr = ask((place, lr) for place in range(0, len(WEIGHT_DECAYS), 16) for lr in rates)
    for distance in (8, 4, 2, 1):
        place, lr = ask([(place - distance, lr), (place + distance, lr)])
    return Setting(float(WEIGHT_DECAYS[place]), lr), scores[place, lr][0]


def _fit_with(
    solver: str, weight: Floats, bias: Floats, config: LinearProbeConfig, epochs: int, seed: int
) -> tuple[Fit, Sequence[float | None]]:
    """Return how a solver fits settings, and the learning rates to be tried."""

    def exactly(z: Floats, labels: Labels, settings: Sequence[Setting]) -> Classifiers:
        fits = [fit_exactly(z, labels, len(weight), s.weight_decay) for s in settings]
        return Classifiers(*(np.concatenate(parts) for parts in zip(*fits, strict=True)))

    def by_minibatches(z: Floats, labels: Labels, settings: Sequence[Setting]) -> Classifiers:
        return fit_minibatches(
            z,
            labels,
            (weight, bias),
            settings,
            epochs=epochs,
            batch_size=config.batch_size,
            seed=seed,
        )

    if solver == "scikit-learn":
        return exactly, (None,)
    return by_minibatches, LEARNING_RATES


def _folds(
    labels: Labels, validation: NDArray[np.bool_] | None, seed: int, thorough: bool
) -> list[NDArray[np.bool_]]:
    """Return masks [N] of the images that choose, one for each fit of a setting."""
    if validation is not None:
        masks = [validation]
    else:
        folds = draw_folds(labels, seed)
        masks = [folds == number for number in range(FOLDS if thorough else 1)]
    masks = [m for m in masks if can_be_measured(labels[m]) and can_be_learnt(labels[~m])]
    if not masks and validation is not None:
        raise UsageError(
            f"none of the {int(validation.sum())} validation images shows a class, or the others "
            "tell no classes apart: name other images for the split val, or none"
        )
    if not masks:
        raise UsageError(
            f"{len(labels)} images are too few to learn from some and choose by others; give two "
            "or more of a class"
        )
    return masks


def _biases_of_frequency(z: Floats, weight: Floats, shown: Labels) -> Floats:
    """Return biases [C] with which each class is on average as likely as it is frequent.

    A sigmoid that starts at text would say yes to everything: cosines with texts are positive.
    """
    share = (shown.sum(axis=0) + 1) / (len(shown) + 2)
    return np.asarray(np.log(share / (1 - share)) - (z @ weight.T).mean(axis=0))


def _score(
    fit: Fit,
    z: Floats,
    labels: Labels,
    folds: Sequence[NDArray[np.bool_]],
    settings: Sequence[Setting],
) -> list[tuple[float, float]]:
    """Return (accuracy, mean log-likelihood) of each setting on held-back images, over all folds.

    Of images with several classes the first is the mean average precision, of each fold by its
    images. Equal ones are told apart by the likelihood.
    """
    sums = np.zeros((len(settings), 2))
    for held_back in folds:
        found = fit(z[~held_back], labels[~held_back], settings)
        rows, wanted = z[held_back], labels[held_back]
        for number, (weight, bias) in enumerate(zip(*found, strict=True)):
            sums[number] += totals(rows @ weight.T + bias, wanted)
    sums /= sum(int(mask.sum()) for mask in folds)
    return [(float(right), float(likely)) for right, likely in sums]


class _Coordinates:
    """Standardised features, along the directions in which the given ones differ at all.

    With fewer images than features (few shots) that is a rotation into N numbers: neither the
    distances nor ‖W - W₀‖ change, and no gradient leaves the space of the images.
    """

    def __init__(self, x: Floats) -> None:
        self.mean = x.mean(axis=0)
        std = x.std(axis=0)
        # What is constant up to rounding says nothing; it is not blown up.
        self.std = np.where(std > 1e-12 * np.maximum(np.abs(self.mean), 1.0), std, 1.0)
        self.basis: Floats | None = None
        if len(x) < x.shape[1]:
            _, _, self.basis = np.linalg.svd((x - self.mean) / self.std, full_matrices=False)

    def into(self, x: Floats) -> Floats:
        """Return coordinates [N, R] of features [N, D]."""
        z = (x - self.mean) / self.std
        return np.asarray(z if self.basis is None else z @ self.basis.T)

    def start_of(self, probe: Probe) -> tuple[Floats, Floats]:
        """Return a probe's weights [C, R] and biases [C] in these coordinates."""
        weight = probe.weight * self.std
        bias = probe.bias + probe.weight @ self.mean
        return (weight if self.basis is None else weight @ self.basis.T), bias

    def probe_of(self, start: Probe, weight: Floats, bias: Floats) -> Probe:
        """Return the probe of weights [C, R] and biases [C] that were learnt from `start`."""
        if self.basis is not None:
            # What of the start no image can see stays as it was.
            weight = start.weight * self.std + (weight - self.start_of(start)[0]) @ self.basis
        raw = weight / self.std
        return Probe(weight=raw, bias=bias - raw @ self.mean)
