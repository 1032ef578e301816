"""SimKD, the vector form: a projector puts the student's feature onto the teacher's; no labels.

Chen et al., CVPR 2022 (arXiv 2203.14001): a projector brings the student's feature into the
teacher's space, the squared error alone trains both, and the teacher's classifier is used as it is:

    L = mean over batch and dimensions of (f - v)².

The paper matches spatial feature maps with three convolutions. A teacher that is asked for
embeddings has no map to match, so this is the form on vectors:

    f = W2 relu(BN(W1 z + b1)) + b2

The projector is Linear-BN-ReLU-Linear from the student's pooled feature z [W] to the teacher's
dimension D, with hidden width D; W1, b1 is the student's own projection. f is not normalised, v is
the teacher's unit image feature, and the teacher's classifier is its class features. The projector
stays in the student, as it does in the paper.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.parts import teacher_features
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class SimKDOptions:
    """Options of `simkd`."""

    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""


class VectorSimKD(Objective):
    """Mean squared error between the projected feature and the teacher's unit feature."""

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the mean squared error."""
        term = F.mse_loss(outputs.features, teacher_features(batch, "simkd"))
        return Loss(total=term, terms={"mse": term})


def _phases(options: SimKDOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="distill",
            objective=VectorSimKD(),
            trainable="all",
            steps=total_steps,
            views=options.views,
        ),
    )


METHOD = Method(
    name="simkd",
    summary="squared error to the teacher's feature, on vectors; needs no labels",
    paper="Chen et al., CVPR 2022 (arXiv 2203.14001), on vectors instead of feature maps",
    needs=frozenset({"teacher"}),
    options=SimKDOptions,
    phases=_phases,
    student={"projector": "mlp"},
)
