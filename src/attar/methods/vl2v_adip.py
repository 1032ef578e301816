"""VL2V-ADiP: Align the projection, Distill into the backbone, Predict with the text classifier.

Addepalli et al., CVPR 2024 (arXiv 2310.08255). Both stages use one loss,

    L_ADiP = -(1/2n) Σ_i { cos(PF_i, T_{y_i}) + cos(PF_i, I_i) },

with PF the projected student feature, T_y the teacher's text feature of the class and I its image
feature. Align trains the projection alone, Distill the backbone alone; Predict trains nothing: the
classifier is the class features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attar.errors import AttarError, UsageError
from attar.losses import embedding_alignment
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class VL2VOptions:
    """Options of `vl2v-adip`."""

    image_weight: float = 0.5
    """Weight of the teacher's image feature; the text feature has 1 minus it."""
    align_share: float = 0.25
    """Share of the steps spent on aligning the projection before the backbone is trained."""
    views: Views = "clean"
    """`clean`: the teacher saw the clean image; `same`: recorded views (`--embed.views K`), student
    and teacher see the same; `online`: the teacher is asked about every augmented image."""

    def __post_init__(self) -> None:
        if not 0 <= self.image_weight <= 1:
            raise UsageError(f"--method.image-weight {self.image_weight}: must lie in 0 ... 1")
        if not 0 <= self.align_share < 1:
            raise UsageError(f"--method.align-share {self.align_share}: must be 0 or more, below 1")


class EmbeddingAlignment(Objective):
    """Cosine alignment to the teacher's image feature and to the text feature of the label.

    Images without a label (-1) are aligned to their image feature alone.
    """

    def __init__(self, image_weight: float) -> None:
        super().__init__()
        self.image_weight = image_weight

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return L_ADiP; its two terms are logged as negative mean cosines."""
        if batch.image_features is None or batch.labels is None or class_features is None:
            raise AttarError("vl2v-adip needs image features, labels and class features")
        image_features = batch.image_features
        labelled = batch.labels >= 0
        # A gathered row for "-1" would be the last class; the image feature stands in for it.
        text_features = torch.where(
            labelled[:, None], class_features[batch.labels.clamp_min(0)], image_features
        )
        features = outputs.features
        total = embedding_alignment(features, image_features, text_features, self.image_weight)
        terms = {
            "image_alignment": embedding_alignment(features, image_features, text_features, 1.0),
            "text_alignment": embedding_alignment(features, image_features, text_features, 0.0),
        }
        return Loss(total=total, terms=terms)


def _phases(options: VL2VOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    align_steps = round(total_steps * options.align_share)
    objective = EmbeddingAlignment(options.image_weight)
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
        trainable="backbone",
        steps=total_steps - align_steps,
        views=options.views,
    )
    return (align, distill) if align_steps else (distill,)


METHOD = Method(
    name="vl2v-adip",
    summary="align a projection, distil the backbone to image and text embeddings; needs labels",
    paper="Addepalli et al., CVPR 2024 (arXiv 2310.08255)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    options=VL2VOptions,
    phases=_phases,
)
