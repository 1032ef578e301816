"""VL2V-SD: refine the teacher's own image encoder towards the frozen teacher's embeddings.

Addepalli et al., CVPR 2024 (arXiv 2310.08255), the white-box setting. The student is a copy of the
teacher's image encoder, its last projection included, and all of it is trained in one stage with

    L_SD = -(1/2n) Σ_i { cos(I^s_i, T_{y_i}) + cos(I^s_i, I^t_i) },

I^s the student's feature, I^t the frozen teacher's and T_y its text feature of the class. At the
first step I^s = I^t but for the augmentation: the text pulls, and the image term holds.
"""

from dataclasses import dataclass

from attar.methods.base import Method, Phase, Sizes, Views
from attar.methods.parts import require
from attar.methods.vl2v_adip import EmbeddingAlignment, Unlabelled


@dataclass(frozen=True, kw_only=True)
class SelfDistillationOptions:
    """Options of `vl2v-sd`."""

    image_weight: float = 0.5
    """Weight of the teacher's image feature; the text feature has 1 minus it."""
    unlabelled: Unlabelled = "mixture"
    """Text target of an image without a label: see `vl2v-adip`."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        require(0 <= self.image_weight <= 1, "image_weight", self.image_weight, "from 0 to 1")


def _phases(options: SelfDistillationOptions, total: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="refine",
            objective=EmbeddingAlignment(
                options.image_weight, sizes.logit_scale, options.unlabelled
            ),
            trainable="all",
            steps=total,
            views=options.views,
        ),
    )


METHOD = Method(
    name="vl2v-sd",
    summary="white box: refine the teacher's own image encoder towards its image and text "
    "embeddings; needs labels",
    paper="Addepalli et al., CVPR 2024 (arXiv 2310.08255)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    white_box=True,
    options=SelfDistillationOptions,
    phases=_phases,
    student={"freeze_bn": True},
)
