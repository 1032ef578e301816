"""DIME-FM: a small foundation model from images and sentences that were never paired.

Sun et al., ICCV 2023 (arXiv 2303.18232). The student is an image tower alone; the teacher's text
tower stays beside it. With s = 100, unit features v (teacher, image), u (student) and t (sentence),

    L_vl    = KL_1(s v tᵀ ‖ s u tᵀ) + KL_1(s t vᵀ ‖ s t uᵀ)     weight 0.7
    L_pvl   = 2 KL_3(s v vᵀ ‖ s u vᵀ)                           weight 0.3
    L_udist = 2 KL_7(s v vᵀ ‖ s u uᵀ)                           weight 0

where KL_T is the divergence of softmax(·/T), mean over rows, without a factor T². Images and
sentences come in two independent streams.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from attar.errors import AttarError, UsageError
from attar.losses import distance_preservation, pseudo_score_distillation, score_distillation
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.gathering import gather_with_gradients
from attar.methods.parts import require
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class DimeFMOptions:
    """Options of `dime-fm`; the defaults are the official code's."""

    vl_weight: float = 0.7
    """Weight of the distillation of scores between images and sentences."""
    pvl_weight: float = 0.3
    """Weight of the same with the teacher's image features in the place of sentences."""
    udist_weight: float = 0.0
    """Weight of the preservation of distances between images."""
    vl_temperature: float = 1.0
    """Temperature of the first term."""
    pvl_temperature: float = 3.0
    """Temperature of the second term."""
    udist_temperature: float = 7.0
    """Temperature of the third term."""
    scale: float = 100.0
    """What cosines are multiplied by."""
    text_batch: int | None = None
    """Sentences a step and process; --training.batch-size by default."""
    class_prompts: bool = False
    """Also learn from the classes' prompts: each class is one more entry of the text stream, of
    which a visit takes one prompt at random."""
    views: Views = "clean"
    """`clean`: the teacher saw the clean image; `same`: recorded views (`--embed.views K`), student
    and teacher see the same; `online`: the teacher is asked about every augmented image."""

    def __post_init__(self) -> None:
        for name in ("vl_weight", "pvl_weight", "udist_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        for name in ("vl_temperature", "pvl_temperature", "udist_temperature", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0")
        if self.vl_weight + self.pvl_weight + self.udist_weight == 0:
            raise UsageError(
                "all three weights of dime-fm are 0: give one, as in --method.vl-weight 0.7"
            )
        if self.text_batch is not None:
            require(self.text_batch >= 1, "text_batch", self.text_batch, "1 or more")


class UnpairedDistillation(Objective):
    """L = w_vl L_vl + w_pvl L_pvl + w_udist L_udist over the joined batch of all processes.

    Every term is computed for the log; one whose weight is 0 adds no gradient.
    """

    def __init__(self, options: DimeFMOptions) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the weighted sum; in every process that of the joined batch."""
        texts = batch.streams.get("text")
        if batch.image_features is None or texts is None:
            raise AttarError("dime-fm needs the teacher's image features and a text stream")
        own = gather_with_gradients(outputs.features)
        teacher = gather_with_gradients(batch.image_features)
        texts = gather_with_gradients(texts)
        chosen, scale = self.options, self.options.scale
        terms = {
            "vl": score_distillation(own, teacher, texts, chosen.vl_temperature, scale),
            "pvl": pseudo_score_distillation(own, teacher, chosen.pvl_temperature, scale),
            "udist": distance_preservation(own, teacher, chosen.udist_temperature, scale),
        }
        weights = {"vl": chosen.vl_weight, "pvl": chosen.pvl_weight, "udist": chosen.udist_weight}
        weighted = [weights[name] * term for name, term in terms.items() if weights[name]]
        return Loss(total=sum(weighted[1:], weighted[0]), terms=terms)


def _phases(options: DimeFMOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    phase = Phase(
        name="distill",
        objective=UnpairedDistillation(options),
        trainable="all",
        steps=total_steps,
        views=options.views,
    )
    return (phase,)


METHOD = Method(
    name="dime-fm",
    summary="learn from unpaired images and sentences; needs no labels",
    paper="Sun et al., ICCV 2023 (DIME-FM, arXiv 2303.18232)",
    needs=frozenset({"teacher", "text"}),
    asks=lambda options: frozenset({"class_features"} if options.class_prompts else ()),
    options=DimeFMOptions,
    phases=_phases,
    training={"lr": 8e-4, "warmup": 0.04},
    # The official student's projection is one matrix, and its evaluation keeps the whole shorter
    # side, as OpenCLIP's does.
    student={"projection_bias": False, "crop_pct": 1.0},
)
