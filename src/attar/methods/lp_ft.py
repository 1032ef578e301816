"""LP-FT: a linear probe first, then fine-tuning of everything from there.

Kumar et al., ICLR 2022 (arXiv 2202.10054): full fine-tuning from a random classifier distorts the
pretrained features while the classifier is still wrong; a classifier that already fits them does
less harm. Both phases minimise CE(W f + b, y): the first over W and b, the second over all weights.
"""

from dataclasses import dataclass

from attar.methods.base import Method, Phase, Sizes
from attar.methods.erm import CrossEntropy
from attar.methods.parts import require


@dataclass(frozen=True, kw_only=True)
class LPFTOptions:
    """Options of `lp-ft`."""

    probe_share: float = 0.25
    """Share of the steps spent on the classifier alone."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        require(0 < self.probe_share < 1, "probe_share", self.probe_share, "above 0 and below 1")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", smoothing, "0 or more, below 1")


def _phases(options: LPFTOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = CrossEntropy(options.label_smoothing)
    probe_steps = round(total_steps * options.probe_share)
    probe = Phase(name="probe", objective=objective, trainable="projection", steps=probe_steps)
    tune = Phase(
        name="fine-tune", objective=objective, trainable="all", steps=total_steps - probe_steps
    )
    return tuple(phase for phase in (probe, tune) if phase.steps)


METHOD = Method(
    name="lp-ft",
    summary="a linear probe, then fine-tuning of everything; without a teacher, needs labels",
    paper="Kumar et al., ICLR 2022 (arXiv 2202.10054)",
    needs=frozenset({"labels"}),
    options=LPFTOptions,
    phases=_phases,
    head="classes",
)
