"""ERM: plain supervised training of the same backbone, the baseline everyone compares with."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError, UsageError
from attar.methods.base import Method, Objective, Phase, Sizes
from attar.types import Batch, Loss, Outputs

NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class ERMOptions:
    """Options of `erm`."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"--method.label-smoothing {self.label_smoothing}: must be 0 or more, below 1"
            )


class CrossEntropy(Objective):
    """Cross-entropy of the network's own logits; images without a label do not count."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the mean cross-entropy over labelled images (zero when there are none)."""
        if batch.labels is None:
            raise AttarError("erm needs labels")
        counted = (batch.labels != NO_LABEL).sum().clamp_min(1)
        summed = F.cross_entropy(
            outputs.features,
            batch.labels,
            ignore_index=NO_LABEL,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        term = summed / counted
        return Loss(total=term, terms={"cross_entropy": term})


def _phases(options: ERMOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = CrossEntropy(options.label_smoothing)
    return (Phase(name="train", objective=objective, trainable="all", steps=total_steps),)


METHOD = Method(
    name="erm",
    summary="plain supervised training without a teacher; the baseline; needs labels",
    paper="Vapnik, 1998; as in DomainBed (Gulrajani and Lopez-Paz, ICLR 2021)",
    needs=frozenset({"labels"}),
    options=ERMOptions,
    phases=_phases,
    head="classes",
)
