"""How much of an image's target is its label's text, and how much the teacher's own feature.

VL2V gives every image the same weight w of the teacher's image feature and 1 - w of its label's
text feature. With a label weight λ it is 1 - λ and λ: 1 follows the labels alone, 0 the teacher
alone. `auto` lets the labels speak where the teacher is weak,

    λ_i = 1 - w · r(domain_i, class_i),

with r how often the teacher's zero-shot answer, under the class features that the run trains
towards, is right on the training images of that domain and class. A teacher that is always right
leaves the weights at w and 1 - w; one that is never right is not followed at all. B: batch, N:
training images, S: domains, C: classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError
from attar.methods.parts import require
from attar.types import Batch

LabelWeight = float | Literal["auto"] | None
"""None: 1 - w."""
STREAM = "reliability"
"""The stream with r [S + 1, C]; its last row is for images without a domain."""
PRIOR_IMAGES = 10.0
"""How many images an estimate's parent counts for: the class for what its domain is worth, and the
domain for what all images are."""


def check_label_weight(value: LabelWeight) -> None:
    """Refuse a number outside 0 ... 1 (UsageError)."""
    if isinstance(value, float):
        require(0 <= value <= 1, "label_weight", value, "from 0 to 1, or auto")


def image_weights(
    batch: Batch, label_weight: float | Literal["auto"], image_weight: float
) -> Tensor:
    """Return the weight [B] of each image's teacher feature: 1 - λ.

    An image without a label keeps `image_weight`: there is no label to follow.

    Raises:
        AttarError: `auto`, and the batch lacks labels, domains or the stream of reliabilities.
    """
    if batch.labels is None:
        raise AttarError("a label weight needs labels")
    if label_weight == "auto":
        table = batch.streams.get(STREAM)
        if table is None or batch.domains is None:
            raise AttarError(f"label weight auto needs domains and the stream {STREAM!r}")
        followed = image_weight * table[batch.domains, batch.labels]
    else:
        followed = torch.full_like(batch.labels, 1 - label_weight, dtype=torch.float32)
    return torch.where(batch.labels >= 0, followed, image_weight)


def weighted_alignment(
    student: Tensor, image_features: Tensor, text_features: Tensor, image_weights: Tensor
) -> Tensor:
    """Return `losses.embedding_alignment` with a weight for each image.

    -(1/B) Σ_i { w_i cos(student_i, image_i) + (1 - w_i) cos(student_i, text_i) }

    Args:
        student: [B, D] the student's projected image features.
        image_features: [B, D] the teacher's image features.
        text_features: [B, D] the teacher's text feature of each image's class.
        image_weights: [B] w in [0, 1].
    """
    to_image = F.cosine_similarity(student, image_features, dim=-1)
    to_text = F.cosine_similarity(student, text_features, dim=-1)
    return -(image_weights * to_image + (1 - image_weights) * to_text).mean()


def reliability(
    right: Tensor, domains: Tensor, labels: Tensor, num_domains: int, num_classes: int
) -> Tensor:
    """Return how often the teacher is right on each domain and class, [S + 1, C] in 0 ... 1.

    Few images say little, so each estimate leans on its parent as if on `PRIOR_IMAGES` images:

        r = (h + 1) / (n + 2),   r_s = (h_s + m r) / (n_s + m),   r_sc = (h_sc + m r_s) / (n_sc + m)

    with h of n images right. A class without images in a domain has the domain's. Images without a
    domain make a domain of their own, the last row.

    Args:
        right: [N] bool.
        domains: [N] index of the domain, -1 for none.
        labels: [N] index of the class, -1 for none: such images do not count.
        num_domains: S.
        num_classes: C.
    """
    known = labels >= 0
    domain_N, label_N = domains[known] % (num_domains + 1), labels[known]
    cell_N = domain_N * num_classes + label_N
    cells, shape = (num_domains + 1) * num_classes, (num_domains + 1, num_classes)
    count_SC = torch.bincount(cell_N, minlength=cells).view(shape).double()
    hits_SC = torch.bincount(cell_N, right[known].double(), minlength=cells).view(shape)
    overall = (hits_SC.sum() + 1) / (count_SC.sum() + 2)
    of_domain_S1 = (hits_SC.sum(1, keepdim=True) + PRIOR_IMAGES * overall) / (
        count_SC.sum(1, keepdim=True) + PRIOR_IMAGES
    )
    return ((hits_SC + PRIOR_IMAGES * of_domain_S1) / (count_SC + PRIOR_IMAGES)).float()
