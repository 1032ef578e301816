"""Fine-tuning: the teacher's own image encoder, trained with cross-entropy under its text head.

    L = CE(s cos(f, t), y),

f the encoder's feature, t the class features and s the teacher's scale; t stays as it is, so the
tuned encoder is classified by class features, as all students in the teacher's space are. Wortsman
et al. (CVPR 2022) begin their classifier at t and go on training it; here the text head is fixed.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError
from attar.methods.base import Method, Objective, Phase, Sizes
from attar.methods.parts import cross_entropy, labels_of, require
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """Options of `fine-tune`."""

    scale: float | None = None
    """s, what cosines are multiplied by; the teacher's own by default."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        if self.scale is not None:
            require(0 < self.scale < math.inf, "scale", self.scale, "above 0")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", smoothing, "0 or more, below 1")


class TextHeadCrossEntropy(Objective):
    """Cross-entropy under the class features; images without a label do not count."""

    def __init__(self, scale: float, label_smoothing: float) -> None:
        super().__init__()
        self.scale = scale
        self.label_smoothing = label_smoothing

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the mean cross-entropy over labelled images (zero when there are none)."""
        if class_features is None:
            raise AttarError("fine-tuning under the text head needs class features")
        features = F.normalize(outputs.features, dim=-1)
        logits = self.scale * features @ F.normalize(class_features, dim=-1).T
        term = cross_entropy(logits, labels_of(batch, "fine-tune"), self.label_smoothing)
        return Loss(total=term, terms={"cross_entropy": term})


def fine_tuning(
    options: FineTuneOptions, steps: int, sizes: Sizes, *, interpolation: float = 1.0
) -> tuple[Phase, ...]:
    """Return the one phase, whose weights may be drawn back to those it began with."""
    scale = sizes.logit_scale if options.scale is None else options.scale
    return (
        Phase(
            name="fine-tune",
            objective=TextHeadCrossEntropy(scale, options.label_smoothing),
            trainable="all",
            steps=steps,
            interpolation=interpolation,
        ),
    )


METHOD = Method(
    name="fine-tune",
    summary="white box: the teacher's own image encoder, trained with labels under its text head",
    paper="as in Wortsman et al., CVPR 2022 (arXiv 2109.01903)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    white_box=True,
    options=FineTuneOptions,
    phases=fine_tuning,
    student={"freeze_bn": True},
)
