"""What several objectives share: labels, cross-entropy over them, the teacher's own logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from attar.errors import AttarError, UsageError
from attar.types import Batch

NO_LABEL = -1
GREATEST_SCALE = 100.0
"""CLIP's bound of a learnt scale."""
ABOVE_0_TO_1 = "above 0 and at most 1"
"""The range of a share that may be all and not nothing, for `require`."""


def require(holds: bool, option: str, value: object, wanted: str) -> None:
    """Refuse an option's value that is out of its range.

    Raises:
        UsageError: `holds` is false; the message names the option and the value.
    """
    if not holds:
        raise UsageError(f"--method.{option.replace('_', '-')} {value}: must be {wanted}")


def learnt_scale(log_scale: Parameter) -> Tensor:
    """Return e^a, after bringing `a` back to ln 100 where a step has taken it beyond, as CLIP does.

    A bound inside the graph would give `a` no gradient beyond it, nor a way back.
    """
    with torch.no_grad():
        log_scale.clamp_(max=math.log(GREATEST_SCALE))
    return log_scale.exp()


def labels_of(batch: Batch, method: str) -> Tensor:
    """Return the labels [B], -1 for none."""
    if batch.labels is None:
        raise AttarError(f"{method} needs labels")
    return batch.labels


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over labelled images; zero when there are none.

    Args:
        logits: [B, C].
        labels: [B], -1 for none.
        label_smoothing: share of the target spread over all classes.
    """
    summed = F.cross_entropy(
        logits,
        labels,
        ignore_index=NO_LABEL,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return summed / (labels != NO_LABEL).sum().clamp_min(1)


def teacher_features(batch: Batch, method: str) -> Tensor:
    """Return the teacher's image features [B, D]."""
    if batch.image_features is None:
        raise AttarError(f"{method} needs the teacher's image features in the batch")
    return batch.image_features


def zero_shot_logits(
    batch: Batch, class_features: Tensor | None, scale: float, method: str
) -> Tensor:
    """Return the teacher's logits [B, C] = scale · cos(v, t_c); no gradient passes."""
    if class_features is None:
        raise AttarError(f"{method} needs class features")
    images = F.normalize(teacher_features(batch, method).detach(), dim=-1)
    return scale * images @ F.normalize(class_features.detach(), dim=-1).T


def class_mixture(image_features: Tensor, class_features: Tensor, scale: float) -> Tensor:
    """Return the text that the teacher itself would give each image: unit rows, no gradient.

    m = normalise(Σ_c p_c t_c) with p = softmax(s cos(v, t)), so that a sure teacher names one class
    and an unsure one stays between several.

    Args:
        image_features: [B, D] the teacher's image features v.
        class_features: [C, D] the class features t.
        scale: s, what the teacher multiplies cosines by.
    """
    images = F.normalize(image_features.detach(), dim=-1)
    classes = F.normalize(class_features.detach(), dim=-1)
    return F.normalize((scale * images @ classes.T).softmax(dim=-1) @ classes, dim=-1)
