"""Several labels an image: probabilities from regions, their loss and their metrics.

Sun et al., NeurIPS 2022 (DualCoOp, arXiv 2206.09541) as Li et al. (ICCV 2023, arXiv 2307.03135)
use it. Shapes: B batch, R regions, C labels, D the joint dimension, N images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

THRESHOLD = 0.5
"""A label is predicted when its probability is above this."""
_SMALLEST = 1e-8

Decisions = Tensor | NDArray[Any]


def region_probabilities(
    regions: Tensor,
    positive: Tensor,
    negative: Tensor,
    bias: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    """Return the probability [B, C] that each label is in the image.

    With c_r± the cosine of region r and a label's positive or negative prompt,

        a± = Σ_r softmax_r(c±/τ)_r · c_r±,    p = exp(a+/τ) / (exp(a+/τ) + exp(a-/τ)),

    and the result is p + tanh(bias), clamped to 0 ... 1. (A bias on both logits would cancel in the
    softmax over the two prompts; the learnt one is therefore on the probability.)

    Args:
        regions: [B, R, D] features of the image's places.
        positive: [C, D] features of the prompts that say a label is there.
        negative: [C, D] features of those that say it is not.
        bias: 0-dim, shared by all labels, or None for none.
        temperature: τ.
    """
    present = _aggregate(regions, positive, temperature)
    absent = _aggregate(regions, negative, temperature)
    probabilities = torch.sigmoid((present - absent) / temperature)
    if bias is None:
        return probabilities
    return (probabilities + torch.tanh(bias)).clamp(0, 1)


def _aggregate(regions: Tensor, prompts: Tensor, temperature: float) -> Tensor:
    """Return Σ_r softmax_r(cos/τ) · cos, [B, C]."""
    cosines_BRC = F.normalize(regions, dim=-1) @ F.normalize(prompts, dim=-1).mT
    return (torch.softmax(cosines_BRC / temperature, dim=1) * cosines_BRC).sum(dim=1)


def asymmetric_loss(
    probabilities: Tensor,
    targets: Tensor,
    gamma_negative: float = 2,
    gamma_positive: float = 1,
    clip: float = 0.05,
) -> Tensor:
    """Asymmetric loss, summed over labels and averaged over images.

    Ridnik et al., ICCV 2021 (arXiv 2009.14119): with q = min(1 - p + clip, 1),

        L = -(1/B) Σ_i Σ_y { t (1 - p)^γ+ log p + (1 - t) (1 - q)^γ- log q }.

    The focusing factors (1 - p)^γ+ and (1 - q)^γ- are taken as constants: no gradient flows through
    them. Logarithms are of at least 1e-8.

    Args:
        probabilities: [B, C] in 0 ... 1.
        targets: [B, C] multi-hot.
        gamma_negative: γ- >= 0, how much easy negatives are discounted.
        gamma_positive: γ+ >= 0.
        clip: negatives with a probability up to this cost nothing.
    """
    t = targets.to(probabilities.dtype)
    p, q = probabilities, (1 - probabilities + clip).clamp(max=1)
    focus = t * (1 - p.detach()) ** gamma_positive + (1 - t) * (1 - q.detach()) ** gamma_negative
    log_likelihood = t * _log(p) + (1 - t) * _log(q)
    return -(focus * log_likelihood).sum(dim=-1).mean()


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=_SMALLEST).log()


def m1(predicted: Decisions, targets: Decisions) -> float:
    """Return M1 (Li et al., eq. 9): the share of right decisions over images and labels.

    Args:
        predicted: bool [N, C].
        targets: bool [N, C].
    """
    guesses, truth = _decisions(predicted, targets)
    return float((guesses == truth).double().mean())


def f1_paper(predicted: Decisions, targets: Decisions) -> float:
    """Return F1 as Li et al. print it (eq. 10).

    Their "precision" of a label is TP / (TP + FP + FN), a Jaccard index; recall is TP / (TP + FN).
    Each is averaged over the labels for which it is defined, and F1 is the harmonic mean of the two
    averages: 0 when nothing was right.

    Args:
        predicted: bool [N, C].
        targets: bool [N, C].
    """
    right, wrong, missed = _counts(*_decisions(predicted, targets))
    precision = _mean_ratio(right, right + wrong + missed)
    recall = _mean_ratio(right, right + missed)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def macro_f1(predicted: Decisions, targets: Decisions) -> float:
    """Return the mean over labels of F1 = 2 TP / (2 TP + FP + FN).

    Labels that neither occur nor are predicted do not count; 0 when there is no other.

    Args:
        predicted: bool [N, C].
        targets: bool [N, C].
    """
    right, wrong, missed = _counts(*_decisions(predicted, targets))
    return _mean_ratio(2 * right, 2 * right + wrong + missed)


def _decisions(predicted: Decisions, targets: Decisions) -> tuple[Tensor, Tensor]:
    guesses, truth = (torch.as_tensor(values).bool() for values in (predicted, targets))
    if guesses.shape != truth.shape or guesses.ndim != 2 or not guesses.numel():
        raise ValueError(
            f"decisions {tuple(guesses.shape)} and targets {tuple(truth.shape)} must be equal "
            "[N, C] with at least one image and one label"
        )
    return guesses, truth


def _counts(guesses: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return true positives, false positives and false negatives of each label, [C]."""
    pairs = (guesses & truth, guesses & ~truth, ~guesses & truth)
    right, wrong, missed = (pair.sum(dim=0).double() for pair in pairs)
    return right, wrong, missed


def _mean_ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Return the mean ratio where the denominator is not zero, 0 when it is everywhere."""
    defined = denominator > 0
    if not defined.any():
        return 0.0
    return float((numerator[defined] / denominator[defined]).mean())
