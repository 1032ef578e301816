"""What a user may choose about the teacher gate; free of torch so that the CLI starts fast."""

from dataclasses import dataclass
from typing import Literal

from attar.errors import UsageError

LabelsOf = Literal["others", "own"]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How the teacher is put to the test."""

    labels_per_class: int = 5
    """Labels of each class and domain that the probe learns from."""
    labels_of: Literal["auto", "others", "own"] = "auto"
    """Whose labels decide: those of the `others` domains, as for a domain that no label will ever
    come from; or the domain's `own`. `auto`: others where there are two or more domains."""
    draws: int = 10
    """How often the labels are drawn anew; the probe's accuracy is the mean."""
    margin: float = 0.05
    """Accuracy by which the teacher may be behind the probe at most, interval and all, to go."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Draws the labels."""

    def __post_init__(self) -> None:
        for name, least in (("labels_per_class", 1), ("draws", 2)):
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {getattr(self, name)}: give {least} or more")
        if not 0 <= self.margin < 1:
            raise UsageError(f"--margin {self.margin}: must be 0 or more, below 1")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence}: must be 0.5 or more, below 1")
