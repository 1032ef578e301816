"""What a few labels are worth: a linear probe on frozen features, over several draws of labels.

The probe is ridge regression on one-hot labels from unit features; its penalty is the one of
`PENALTIES` with the least squared leave-one-out error on the labels themselves, in closed form. So
it needs no validation images, no learning rate and no seed. N: images, R: draws, W: width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV

from attar.evaluation.metrics import Floats, Indices, unit
from attar.files import sha256_text

PENALTIES: tuple[float, ...] = tuple(float(10.0**e) for e in range(-3, 3))
Mask = NDArray[np.bool_]


def draw_labels(
    keys: Sequence[str], groups: Indices, count: int, draws: int, seed: int = 0
) -> Mask:
    """Choose which images [R, N] give the probe their label in each draw.

    Each group gives `count` of its images, and at most half of them, but one at least. The choice
    depends on the images' keys alone, neither on their order nor on other groups.

    Args:
        keys: [N] sha256 of each file's bytes, all different.
        groups: [N] class and domain of each image, as one number.
        count: images of each group.
        draws: R.
        seed: of all draws.
    """
    drawn = np.zeros((draws, len(keys)), dtype=bool)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for draw in range(draws):
        place = [sha256_text(f"{seed}:{draw}:{key}") for key in keys]
        for rows in members:
            some = sorted(rows, key=lambda row: place[row])
            drawn[draw, some[: min(count, max(1, len(rows) // 2))]] = True
    return drawn


def probe_answers(features: NDArray[Any], labels: Indices, learn: Mask, ask: Mask) -> Indices:
    """Fit the probe on the images of `learn` [N]; return the classes of those of `ask` [A].

    Args:
        features: [N, W], made unit rows inside.
        labels: [N] index of each image's class.
        learn: [N] at least one image.
        ask: [N].
    """
    known = labels[learn]
    if len(np.unique(known)) == 1:
        return np.full(int(ask.sum()), known[0])
    probe = RidgeClassifierCV(alphas=PENALTIES).fit(unit(features[learn]), known)
    return np.asarray(probe.predict(unit(features[ask])), dtype=np.int64)


def probe_correct(features: NDArray[Any], labels: Indices, learn: Mask, judged: Mask) -> Floats:
    """Return what the probe of each draw has right [R, J] among the judged images [N].

    1 for right, 0 for wrong, NaN for an image whose own label the draw learnt from.

    Args:
        features: [N, W].
        labels: [N].
        learn: [R, N] the labels of each draw.
        judged: [N] with J images.
    """
    correct = np.full((len(learn), int(judged.sum())), np.nan)
    for draw, chosen in enumerate(learn):
        ask = judged & ~chosen
        if chosen.any() and ask.any():
            right = probe_answers(features, labels, chosen, ask) == labels[ask]
            correct[draw, ask[judged]] = right
    return correct
