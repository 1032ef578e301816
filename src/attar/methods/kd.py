"""Knowledge distillation: the student's logits follow the teacher's zero-shot distribution.

Hinton et al., 2015 (arXiv 1503.02531), with a vision-language teacher as in the tables of Addepalli
et al., CVPR 2024. With z the student's logits, v and t the teacher's features and s a scale, by
default CLIP's own,

    L = CE(z, y) + w · T² · KL(softmax(s cos(v, t) / T) ‖ softmax(z / T)),

the divergence summed over classes, mean over the batch. The official code of VL2V's baseline gives
probabilities where the divergence needs log-probabilities; this one does not.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from attar.losses import kl_distillation
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.parts import cross_entropy, labels_of, require, zero_shot_logits
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class KDOptions:
    """Options of `kd`."""

    weight: float = 0.5
    """w, of the divergence from the teacher's distribution; 0.5 is the official code's."""
    temperature: float = 3.0
    """T, which divides both sides' logits; the divergence is multiplied by T²."""
    scale: float = 100.0
    """s, what the teacher's cosines are multiplied by; CLIP's own is 100."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "weight", self.weight, "0 or more")
        for name in ("temperature", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0")


class KnowledgeDistillation(Objective):
    """Labels and the teacher's distribution; an unlabelled image follows the teacher alone."""

    def __init__(self, options: KDOptions) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; the divergence is logged with its T² and without its weight."""
        chosen, logits = self.options, outputs.features
        teacher = zero_shot_logits(batch, class_features, chosen.scale, "kd")
        labels = cross_entropy(logits, labels_of(batch, "kd"))
        divergence = kl_distillation(logits, teacher, chosen.temperature)
        terms = {"cross_entropy": labels, "distillation": divergence}
        return Loss(total=labels + chosen.weight * divergence, terms=terms)


def _phases(options: KDOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = KnowledgeDistillation(options)
    return (
        Phase(
            name="distill",
            objective=objective,
            trainable="all",
            steps=total_steps,
            views=options.views,
        ),
    )


METHOD = Method(
    name="kd",
    summary="labels and the teacher's zero-shot probabilities; a plain classifier",
    paper="Hinton et al., 2015 (arXiv 1503.02531); as in Addepalli et al., CVPR 2024",
    needs=frozenset({"teacher", "labels", "class_features"}),
    options=KDOptions,
    phases=_phases,
    head="classes",
)
