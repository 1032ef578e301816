"""Feature imitation: put each image where the teacher puts it. Needs no labels and no texts."""

from dataclasses import dataclass

from torch import Tensor

from attar.errors import AttarError
from attar.losses import feature_mse
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class FeatureMSEOptions:
    """Options of `feature-mse`."""

    views: Views = "clean"
    """`clean`: the teacher saw the clean image; `same`: recorded views (`--embed.views K`), student
    and teacher see the same; `online`: the teacher is asked about every augmented image."""


class FeatureMSE(Objective):
    """‖s - v‖² between unit features, summed over D, mean over the batch (Li et al., eq. 2)."""

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the distance to the teacher's image features."""
        if batch.image_features is None:
            raise AttarError("feature-mse needs the teacher's image features in the batch")
        term = feature_mse(outputs.features, batch.image_features)
        return Loss(total=term, terms={"feature_mse": term})


def _phases(options: FeatureMSEOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    phase = Phase(
        name="distill",
        objective=FeatureMSE(),
        trainable="all",
        steps=total_steps,
        views=options.views,
    )
    return (phase,)


METHOD = Method(
    name="feature-mse",
    summary="imitate the teacher's image features; needs no labels",
    paper="Li et al., ICCV 2023 (arXiv 2307.03135), eq. 2; Yang et al., CVPR 2024 (CLIP-KD, FD)",
    needs=frozenset({"teacher"}),
    options=FeatureMSEOptions,
    phases=_phases,
)
