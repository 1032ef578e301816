"""Two ways to fit the linear classifiers of a probe: exactly, and by minibatches.

Both minimise one convex function of the weights W [C, D] and biases b [C],

    J(W, b) = 1/N Σ_i CE(softmax(W z_i + b), y_i) + λ/2 ‖W - W₀‖²

where the labels y are [N] class indices; where they are [N, C] and say which classes an image
shows, CE is the sum over classes of the cross-entropy of σ(W z_i + b).

N: images, B: images of a minibatch, C: classes, D: features, H: classifiers learnt side by side.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from attar.evaluation.metrics import Floats, Indices
from attar.evaluation.probe_labels import Labels

_MOMENTUM = 0.9
_LEAST_STEPS = 300
"""Minibatches that a fit sees at least: few shots make one an epoch, too few to get anywhere."""
_MOST_ITERATIONS = 1000
"""Of scikit-learn's L-BFGS, as CLIP's authors give it."""


class Setting(NamedTuple):
    """What is searched."""

    weight_decay: float
    lr: float | None
    """None for a solver that has none."""


class Classifiers(NamedTuple):
    """H linear classifiers of the same features."""

    weights: Floats
    """[H, C, D]"""
    biases: Floats
    """[H, C]; -inf for a class without any training image, which then is never the answer, inf for
    one of several that every image shows."""


def fit_exactly(z: Floats, labels: Labels, num_classes: int, weight_decay: float) -> Classifiers:
    """Minimise J from W₀ = 0 with scikit-learn; return one classifier."""
    if labels.ndim == 1:
        return fit_logistic(z, labels.astype(np.int64), num_classes, weight_decay)
    weights, biases = np.zeros((1, num_classes, z.shape[1])), np.full((1, num_classes), -np.inf)
    for number, shown in enumerate(labels.T):
        if shown.all():
            biases[0, number] = np.inf
        elif shown.any():
            model = _logistic(z, shown, 1 / (weight_decay * len(z)))
            weights[0, number], biases[0, number] = model.coef_[0], model.intercept_[0]
    return Classifiers(weights, biases)


def fit_logistic(z: Floats, labels: Indices, num_classes: int, weight_decay: float) -> Classifiers:
    """Minimise J of one class an image from W₀ = 0 with scikit-learn; return one classifier.

    scikit-learn minimises ½ ‖W‖² + K Σ CE, so K = 1 / (λ N). Of two classes it learns only the
    difference w of their rows, ±w/2, whose ½ ‖w‖² is twice the ½ ‖W‖² of the two: K doubles.
    """
    present = np.unique(labels)
    strength = (2 if len(present) == 2 else 1) / (weight_decay * len(z))
    model = _logistic(z, labels, strength)
    rows, offsets = model.coef_, model.intercept_
    if len(present) == 2:
        rows, offsets = np.concatenate([-rows, rows]) / 2, np.concatenate([-offsets, offsets]) / 2
    weights, biases = np.zeros((1, num_classes, z.shape[1])), np.full((1, num_classes), -np.inf)
    weights[0, present], biases[0, present] = rows, offsets
    return Classifiers(weights, biases)


def _logistic(z: Floats, labels: Labels, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        # One that needs longer is judged by its accuracy like any other.
        warnings.simplefilter("ignore")
        model.fit(z, labels)
    return model


def fit_minibatches(
    z: Floats,
    labels: Labels,
    start: tuple[Floats, Floats],
    settings: Sequence[Setting],
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
) -> Classifiers:
    """Minimise J by stochastic gradient descent, one classifier for each of H settings.

    All see the same batches; each has its learning rate, which falls to zero along a cosine, and
    momentum 0.9. The pull to W₀ is an implicit step, W ← (W' + ηλ W₀) / (1 + ηλ), so that no λ is
    too strong for a learning rate; η = lr / (1 - 0.9) is how far momentum carries a gradient.
    With no epoch, the start is what comes back.

    Args:
        z: [N, D].
        labels: [N], or [N, C] whether an image shows a class.
        start: W₀ [C, D] and the first biases [C].
        settings: the λ and learning rate of each classifier.
        epochs: passes over the rows; at least 300 minibatches are seen.
        batch_size: rows in a minibatch.
        seed: of the rows' order.
    """
    x_ND, y = torch.from_numpy(z).float(), torch.from_numpy(labels)
    first_HCD = torch.from_numpy(start[0]).float().expand(len(settings), -1, -1)
    weight_HCD = first_HCD.clone()
    bias_HC = torch.from_numpy(start[1]).float().expand(len(settings), -1).clone()
    speed_HCD, speed_HC = torch.zeros_like(weight_HCD), torch.zeros_like(bias_HC)
    decay_H11 = torch.tensor([s.weight_decay for s in settings]).view(-1, 1, 1)
    lr_H11 = torch.tensor([s.lr or 0.0 for s in settings]).view(-1, 1, 1)
    for rows, share in _minibatches(len(z), epochs, batch_size, seed):
        grad_HCD, grad_HC = _gradients(x_ND[rows], y[rows], weight_HCD, bias_HC)
        speed_HCD, speed_HC = _MOMENTUM * speed_HCD + grad_HCD, _MOMENTUM * speed_HC + grad_HC
        rate_H11 = lr_H11 * (1 + math.cos(math.pi * share)) / 2
        pull_H11 = rate_H11 / (1 - _MOMENTUM) * decay_H11
        weight_HCD -= rate_H11 * speed_HCD
        weight_HCD = (weight_HCD + pull_H11 * first_HCD) / (1 + pull_H11)
        bias_HC -= rate_H11[:, :, 0] * speed_HC
    return Classifiers(weight_HCD.double().numpy(), bias_HC.double().numpy())


def _minibatches(
    count: int, epochs: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, float]]:
    """Yield the rows of each minibatch and the share of all steps that went before."""
    if not epochs:
        return
    steps = max(epochs * math.ceil(count / batch_size), _LEAST_STEPS)
    random = torch.Generator().manual_seed(seed)
    step = 0
    while step < steps:
        order = torch.randperm(count, generator=random)
        for begin in range(0, count, batch_size):
            if step < steps:
                yield order[begin : begin + batch_size], step / steps
            step += 1


def _gradients(
    x_BD: Tensor, y: Tensor, weight_HCD: Tensor, bias_HC: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ∂CE/∂W [H, C, D] and ∂CE/∂b [H, C] of the mean over a minibatch: (p - y) zᵀ."""
    shape = weight_HCD.shape
    logits_BHC = (x_BD @ weight_HCD.flatten(0, 1).T).view(-1, *shape[:2]) + bias_HC
    if y.ndim == 2:
        error_BHC = logits_BHC.sigmoid() - y[:, None].float()
    else:
        error_BHC = logits_BHC.softmax(dim=-1)
        error_BHC[torch.arange(len(y)), :, y] -= 1
    error_BHC /= len(y)
    return (error_BHC.flatten(1).T @ x_BD).view(shape), error_BHC.sum(dim=0)
