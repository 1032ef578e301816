"""Text2Concept: a linear map from a frozen backbone into the teacher's space, classified by text.

Moayeri et al., ICML 2023 (arXiv 2305.06386). The backbone stays as it was pretrained; only

    min over W, b of the mean of ‖W f + b - v‖²

is learnt, with f the backbone's pooled feature and v the teacher's unit image feature. This is a
least-squares problem: `--student.projection fitted` begins at its ridge solution in closed form on
clean images, and the steps then follow the gradient on augmented ones.
"""

from dataclasses import dataclass

from torch import Tensor

from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.parts import teacher_features
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class Text2ConceptOptions:
    """Options of `text2concept`."""

    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""


class LinearAlignment(Objective):
    """‖f' - v‖² summed over D, mean over the batch; f' is the projected feature as it comes."""

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the squared distance."""
        distance = outputs.features - teacher_features(batch, "text2concept")
        term = distance.square().sum(dim=-1).mean()
        return Loss(total=term, terms={"squared_distance": term})


def _phases(options: Text2ConceptOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="align",
            objective=LinearAlignment(),
            trainable="projection",
            steps=total_steps,
            views=options.views,
        ),
    )


METHOD = Method(
    name="text2concept",
    summary="a linear map from the frozen backbone to the teacher's image features; no labels",
    paper="Moayeri et al., ICML 2023 (arXiv 2305.06386)",
    needs=frozenset({"teacher"}),
    options=Text2ConceptOptions,
    phases=_phases,
    training={"lr": 1e-4, "weight_decay": 0.0},
    student={"projection": "fitted"},
)
