"""ERM: plain supervised training of the same backbone, the baseline everyone compares with."""

from dataclasses import dataclass

from torch import Tensor

from attar.methods.base import Method, Objective, Phase, Sizes
from attar.methods.parts import cross_entropy, labels_of, require
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class ERMOptions:
    """Options of `erm`."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        share = self.label_smoothing
        require(0 <= share < 1, "label_smoothing", share, "0 or more, below 1")


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
        term = cross_entropy(outputs.features, labels_of(batch, "erm"), self.label_smoothing)
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
