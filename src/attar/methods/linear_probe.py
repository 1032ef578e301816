"""Linear probe: a linear classifier on the frozen backbone, trained with cross-entropy.

    min over W, b of the mean of CE(W f + b, y), f the backbone's pooled feature.

It says how far the pretrained features alone reach. BatchNorm stays as it was pretrained, too.
"""

from dataclasses import dataclass

from attar.methods.base import Method, Phase, Sizes
from attar.methods.erm import CrossEntropy
from attar.methods.parts import require


@dataclass(frozen=True, kw_only=True)
class LinearProbeOptions:
    """Options of `linear-probe`."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", smoothing, "0 or more, below 1")


def _phases(options: LinearProbeOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = CrossEntropy(options.label_smoothing)
    return (Phase(name="probe", objective=objective, trainable="projection", steps=total_steps),)


METHOD = Method(
    name="linear-probe",
    summary="a linear classifier on the frozen backbone, without a teacher; needs labels",
    paper="as in Kumar et al., ICLR 2022 (arXiv 2202.10054)",
    needs=frozenset({"labels"}),
    options=LinearProbeOptions,
    phases=_phases,
    head="classes",
)
