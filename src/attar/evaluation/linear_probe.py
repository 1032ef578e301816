"""Linear probes: what a linear classifier can read from frozen features.

Both solvers minimise one convex function of the weights W [C, D] and biases b [C],

    J(W, b) = 1/N Σ_i CE(softmax(W z_i + b), y_i) + λ/2 ‖W - W₀‖²

over features z that are standardised on the images it is learnt from (BatchNorm without weights).
W₀ is zero, or the class features, where the classifier then begins as the zero-shot one. The weight
decay λ, and for minibatches the learning rate, are chosen on images that no weight was fitted to.
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
    fit_logistic,
    fit_minibatches,
)
from attar.evaluation.metrics import Array, Floats, Indices, as_array, softmax, unit
from attar.files import sha256_text

WEIGHT_DECAYS = np.logspace(-6, 6, 97)
"""The values of λ; every sixteenth is tried, then the best one's neighbours 8, 4, 2 and 1 away."""
LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The learning rates that minibatches try, each with each of the first values of λ."""
SMALL = 20_000_000
"""Numbers (N · D) up to which scikit-learn fits: 160 MB in float64."""
FOLDS = 5
"""One image of five validates."""


Fit = Callable[[Floats, Indices, Sequence[Setting]], Classifiers]
"""(features [N, D], labels [N], settings [H]) -> a classifier for each setting."""


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
    val_acc1: float
    """Accuracy of this setting on the images that chose it."""
    solver: str


def zero_shot_probe(class_features: Array, logit_scale: float) -> Probe:
    """Return the probe that is the zero-shot classifier of unit features: logits s · z tᵀ."""
    weight = logit_scale * unit(class_features)
    return Probe(weight=weight, bias=np.zeros(len(weight)))


def zero_probe(num_classes: int, dim: int) -> Probe:
    """Return the probe that knows nothing."""
    return Probe(weight=np.zeros((num_classes, dim)), bias=np.zeros(num_classes))


def draw_shots(labels: Array, keys: Sequence[str], shots: int, seed: int) -> Indices:
    """Return `shots` rows of every class among labels [N], in the order of the rows.

    Rows with one key show one image, which is drawn once. The order of drawing is that of
    sha256(seed, key): it depends on nothing but the images, and fewer shots of a seed are among its
    more.

    Raises:
        UsageError: a class with fewer images.
    """
    of_class: dict[int, list[int]] = {}
    order = sorted(range(len(keys)), key=lambda row: sha256_text(f"{seed}:{keys[row]}"))
    seen: set[tuple[int, str]] = set()
    for row in order:
        label = int(labels[row])
        if label >= 0 and (label, keys[row]) not in seen:
            seen.add((label, keys[row]))
            of_class.setdefault(label, []).append(row)
    for label, rows in of_class.items():
        if len(rows) < shots:
            raise UsageError(f"class {label} has {len(rows)} images, too few for {shots} shots")
    return np.sort([row for rows in of_class.values() for row in rows[:shots]]).astype(np.int64)


def draw_folds(labels: Indices, seed: int, count: int = FOLDS) -> Indices:
    """Return the fold [N] in which each row validates, stratified by class.

    Every class is spread over the folds as evenly as it can be; the only image of a class is always
    learnt from (-1).
    """
    random, folds, begin = np.random.default_rng(seed), np.full(len(labels), -1), 0
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            # Each class goes on where the last one stopped, so that the folds are of one size.
            folds[rows] = (begin + np.arange(len(rows))) % count
            begin += len(rows)
    return folds


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
        labels: [N] in 0 ... C-1.
        start: where the classifier starts and what it is held near; says what C is.
        config: the solver, and what minibatches need.
        validation: [N] which images choose; none: a fifth of each class, drawn by `seed`.
        seed: draws the images that choose and the minibatches.
        thorough: choose by the mean over all five fifths: a few shots held back once say little.

    Raises:
        UsageError: fewer than two classes, or no image to choose by.
    """
    x, y = as_array(features).astype(np.float64), as_array(labels).astype(np.int64)
    if len(np.unique(y)) < 2:
        raise UsageError(f"a probe needs images of two classes or more; {len(y)} are of one")
    space = _Coordinates(x)
    z, (weight, bias) = space.into(x), space.start_of(start)
    solver = solver_of(config, x.shape, starts_at_zero=not start.weight.any())
    fit, rates = _fit_with(solver, weight, bias, config, config.search_epochs, seed)
    folds = _folds(y, validation, seed, thorough)
    setting, val_acc1 = search(lambda settings: _score(fit, z, y, folds, settings), rates)
    fit, _ = _fit_with(solver, weight, bias, config, config.epochs, seed)
    found = fit(z, y, [setting])
    probe = space.probe_of(start, found.weights[0], found.biases[0])
    return Learnt(probe=probe, setting=setting, val_acc1=val_acc1, solver=solver)


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

    def exactly(z: Floats, labels: Indices, settings: Sequence[Setting]) -> Classifiers:
        fits = [fit_logistic(z, labels, len(weight), s.weight_decay) for s in settings]
        return Classifiers(*(np.concatenate(parts) for parts in zip(*fits, strict=True)))

    def by_minibatches(z: Floats, labels: Indices, settings: Sequence[Setting]) -> Classifiers:
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
    labels: Indices, validation: NDArray[np.bool_] | None, seed: int, thorough: bool
) -> list[NDArray[np.bool_]]:
    """Return masks [N] of the images that choose, one for each fit of a setting."""
    if validation is not None:
        masks = [validation]
    else:
        folds = draw_folds(labels, seed)
        masks = [folds == number for number in range(FOLDS if thorough else 1)]
    masks = [mask for mask in masks if mask.any() and len(np.unique(labels[~mask])) > 1]
    if not masks:
        raise UsageError(
            f"{len(labels)} images are too few to learn from some and choose by others; give two "
            "or more of a class"
        )
    return masks


def _score(
    fit: Fit,
    z: Floats,
    labels: Indices,
    folds: Sequence[NDArray[np.bool_]],
    settings: Sequence[Setting],
) -> list[tuple[float, float]]:
    """Return (accuracy, mean log-likelihood) of each setting on held-back images, over all folds.

    Equal accuracies are told apart by the likelihood.
    """
    totals = np.zeros((len(settings), 2))
    for held_back in folds:
        found = fit(z[~held_back], labels[~held_back], settings)
        rows, wanted = z[held_back], labels[held_back]
        for number, (weight, bias) in enumerate(zip(*found, strict=True)):
            logits = rows @ weight.T + bias
            chance = softmax(logits)[np.arange(len(wanted)), wanted]
            totals[number, 0] += (logits.argmax(axis=1) == wanted).sum()
            totals[number, 1] += np.log(np.maximum(chance, 1e-12)).sum()
    totals /= sum(int(mask.sum()) for mask in folds)
    return [(float(accuracy), float(likelihood)) for accuracy, likelihood in totals]


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
