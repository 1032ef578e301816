"""WiSE-FT: fine-tune the teacher's image encoder, then go back part of the way in weight space.

Wortsman et al., CVPR 2022 (arXiv 2109.01903): with θ0 the teacher's weights and θ1 the fine-tuned,

    θ = (1 - α) θ0 + α θ1,    α = 0.5,

which keeps most of what fine-tuning gained on the source and most of the teacher's robustness. The
fine-tuning is that of `fine-tune`.
"""

from dataclasses import dataclass

from attar.methods.base import Method, Phase, Sizes
from attar.methods.fine_tune import FineTuneOptions, fine_tuning
from attar.methods.parts import require


@dataclass(frozen=True, kw_only=True)
class WiSEFTOptions(FineTuneOptions):
    """Options of `wise-ft`."""

    alpha: float = 0.5
    """α, the fine-tuned weights' share: 0 is where training began (the teacher, or the student of
    --start-from), 1 plain fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "from 0 to 1")


def _phases(options: WiSEFTOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return fine_tuning(options, total_steps, sizes, interpolation=options.alpha)


METHOD = Method(
    name="wise-ft",
    summary="white box: the mean of the teacher's image encoder and the fine-tuned one",
    paper="Wortsman et al., CVPR 2022 (arXiv 2109.01903)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    white_box=True,
    options=WiSEFTOptions,
    phases=_phases,
    student={"freeze_bn": True},
)
