"""VL2V-ADiP: Align the projection, Distill into the backbone, Predict with the text classifier.

Addepalli et al., CVPR 2024 (arXiv 2310.08255). Both stages use one loss,

    L_ADiP = -(1/2n) Σ_i { cos(PF_i, T_{y_i}) + cos(PF_i, I_i) },

with PF the projected student feature, T_y the teacher's text feature of the class and I its image
feature. Align trains the projection alone, Distill the backbone alone; Predict trains nothing: the
classifier is the class features.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attar.errors import AttarError
from attar.losses import embedding_alignment
from attar.methods.base import ClassEmbedding, Method, Need, Objective, Phase, Sizes, Views
from attar.methods.label_weight import (
    LabelWeight,
    check_label_weight,
    image_weights,
    weighted_alignment,
)
from attar.methods.parts import ABOVE_0_TO_1, class_mixture, require
from attar.types import Batch, Loss, Outputs

Unlabelled = Literal["mixture", "image"]


@dataclass(frozen=True, kw_only=True)
class VL2VOptions:
    """Options of `vl2v-adip`."""

    image_weight: float = 0.5
    """Weight of the teacher's image feature; the text feature has 1 minus it."""
    label_weight: LabelWeight = None
    """Instead of --method.image-weight, the weight of the label's text: 1 follows the labels alone,
    0 the teacher alone; `auto` gives labels more where the teacher is wrong on training images."""
    align_share: float = 0.25
    """Share of the steps spent on aligning the projection before the backbone is trained."""
    distill_trains: Literal["backbone", "all"] = "backbone"
    """What Distill trains: `backbone` keeps the aligned projection, `all` trains it too; with
    `--method.align-share 0` that is one stage instead of two."""
    interpolation: float = 1.0
    """α of WiSE-FT: the student becomes (1 - α) what Distill began with + α what it reached; 1:
    the latter, as VL2V has it."""
    unlabelled: Unlabelled = "mixture"
    """Text target of an image without a label: `mixture`, the class features weighted by the
    teacher's own probabilities; `image`, none, its image feature alone."""
    class_embedding: ClassEmbedding = "prompts"
    """What stands for a class, in training and afterwards: `prompts`, those of --templates;
    `source-domains`, "a {domain} of a {class}" averaged over the training domains; `all-domains`,
    over the held-out one too (an oracle: it knows that domain's name); `index`, "a photo of a
    {number}"; `source-images`, the mean of the teacher's features of its training images."""
    views: Views = "clean"
    """`clean`: the teacher saw the clean image; `same`: recorded views (`--embed.views K`), student
    and teacher see the same; `online`: the teacher is asked about every augmented image."""

    def __post_init__(self) -> None:
        require(0 <= self.image_weight <= 1, "image_weight", self.image_weight, "in 0 ... 1")
        check_label_weight(self.label_weight)
        require(0 <= self.align_share < 1, "align_share", self.align_share, "0 or more, below 1")
        require(0 < self.interpolation <= 1, "interpolation", self.interpolation, ABOVE_0_TO_1)


class EmbeddingAlignment(Objective):
    """Cosine alignment to the teacher's image feature and to the text feature of the label.

    An image without a label (-1) has the teacher's mixture of classes for its text, or none.
    """

    def __init__(
        self,
        image_weight: float,
        scale: float = 100.0,
        unlabelled: Unlabelled = "mixture",
        label_weight: LabelWeight = None,
    ) -> None:
        """`scale` is what the teacher multiplies cosines by, for the mixture."""
        super().__init__()
        self.image_weight = image_weight
        self.label_weight = label_weight
        self.scale = scale
        self.unlabelled = unlabelled

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return L_ADiP; its two terms are logged as negative mean cosines."""
        if batch.image_features is None or batch.labels is None or class_features is None:
            raise AttarError("VL2V needs image features, labels and class features")
        image_features = batch.image_features
        # A gathered row for "-1" would be the last class; another text stands in for it.
        stand_in = image_features
        if self.unlabelled == "mixture":
            stand_in = class_mixture(image_features, class_features, self.scale)
        labelled = batch.labels >= 0
        text_features = torch.where(
            labelled[:, None], class_features[batch.labels.clamp_min(0)], stand_in
        )
        features = outputs.features
        if self.label_weight is None:
            total = embedding_alignment(features, image_features, text_features, self.image_weight)
        else:
            weights = image_weights(batch, self.label_weight, self.image_weight)
            total = weighted_alignment(features, image_features, text_features, weights)
        terms = {
            "image_alignment": embedding_alignment(features, image_features, text_features, 1.0),
            "text_alignment": embedding_alignment(features, image_features, text_features, 0.0),
        }
        return Loss(total=total, terms=terms)


def _phases(options: VL2VOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    align_steps = round(total_steps * options.align_share)
    objective = EmbeddingAlignment(
        options.image_weight, sizes.logit_scale, options.unlabelled, options.label_weight
    )
    align = Phase(
        name="align",
        objective=objective,
        trainable="projection",
        steps=align_steps,
        views=options.views,
    )
    distill = Phase(
        name="distill",
        objective=objective,
        trainable=options.distill_trains,
        steps=total_steps - align_steps,
        views=options.views,
        interpolation=options.interpolation,
    )
    return (align, distill) if align_steps else (distill,)


def _asks(options: VL2VOptions) -> frozenset[Need]:
    by_domain = options.class_embedding in ("source-domains", "all-domains")
    return frozenset({"domains"} if by_domain else ())


METHOD = Method(
    name="vl2v-adip",
    summary="align a projection, distil the backbone to image and text embeddings; needs labels",
    paper="Addepalli et al., CVPR 2024 (arXiv 2310.08255)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    asks=_asks,
    class_embedding=lambda options: options.class_embedding,
    options=VL2VOptions,
    phases=_phases,
)
