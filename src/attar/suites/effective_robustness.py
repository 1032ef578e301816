"""How much better a model does elsewhere than its accuracy at home lets one expect."""

import numpy as np

from attar.evaluation.metrics import Array, Floats, as_array

LEAST_MODELS = 3
"""Through two points goes a line, whatever they are."""


def effective_robustness(
    at_home: Array, elsewhere: Array, images: tuple[int, int]
) -> Floats | None:
    """Return each model's accuracy elsewhere minus the one that its accuracy at home predicts.

        ρ = acc_elsewhere - β(acc_home),    logit β(x) = a · logit x + b

    (Taori et al. 2020, section 3), with a and b fitted by least squares over the given models. An
    accuracy of 0 or 1, whose logit is infinite, is moved by half an image.

    Args:
        at_home: [M] accuracies of M models.
        elsewhere: [M] the same models' accuracies under the shift.
        images: how many images the two accuracies are over.

    Returns:
        [M], or None with fewer than three models or where all are equally good at home.
    """
    x, y = (
        _logit(values, number) for values, number in zip((at_home, elsewhere), images, strict=True)
    )
    if len(x) < LEAST_MODELS or np.ptp(x) < 1e-9:
        return None
    slope, intercept = np.polyfit(x, y, deg=1)
    expected = 1 / (1 + np.exp(-(slope * x + intercept)))
    return np.asarray(as_array(elsewhere).astype(np.float64) - expected)


def _logit(accuracies: Array, images: int) -> Floats:
    values = np.clip(as_array(accuracies).astype(np.float64), 0.5 / images, 1 - 0.5 / images)
    return np.asarray(np.log(values / (1 - values)))
